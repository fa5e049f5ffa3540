// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Inside the folder: what Choose() is made of. Pure.
#pragma once

#include <cstdint>

#include "kernels/gemm/cuda/gemm.h"
#include "kernels/gemm/cuda/gemm_kernels.h"

namespace nibble::kernels::cuda {

// REQUIRES: not dense float32.
Form FormOf(const GemmDesc& desc);

// Parts that k is cut into. A function of n and k alone, the same for all kernels of a form: it is
// part of what a float sum is.
int KParts(const GemmDesc& desc);

// For a call with up to max_rows rows in num_groups groups. Takes no workspace.
GemmPlan ChooseGrouped(const GemmDesc& desc, int64_t num_groups, int64_t max_rows,
                       const gpu::DeviceCaps& caps);

// The same without wgmma and cuBLASLt: tests run every kernel.
GemmPlan PlanSkinny(const GemmDesc& desc, int tile_n);
GemmPlan PlanTiled(const GemmDesc& desc, int tile_n, int split_k, int64_t num_tokens);

}  // namespace nibble::kernels::cuda
