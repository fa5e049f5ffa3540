// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// GemmKernel::kWgmma: the integer families (W4A8 of all scale forms, W8A8) on Hopper, dense and
// grouped. README.md draws the kernel.
//
// Sums of the folded and the integer form and of W8A8 are exact, so that split_k changes no bit;
// the float form cuts k into the parts that all kernels cut it into, or not at all.
#pragma once

#include <cstdint>
#include <vector>

#include "base/cuda/device.h"
#include "base/status.h"
#include "kernels/gemm/cuda/gemm.h"
#include "kernels/gemm/cuda/gemm_kernels.h"

namespace nibble::kernels::cuda {

// ---- Choosing (pure) ----

// OK for the integer families on sm_90 (exactly: the instructions are of sm_90a), where this
// program has the kernels; else UNIMPLEMENTED naming the field and the limit.
absl::Status SupportsWgmma(const GemmDesc& desc, const gpu::DeviceCaps& caps);

// REQUIRES SupportsWgmma(), num_tokens >= 1.
GemmPlan PlanWgmma(const GemmDesc& desc, int64_t num_tokens, const gpu::DeviceCaps& caps);
// The most that any PlanWgmma() for up to max_tokens takes.
int64_t WgmmaWorkspaceBytes(const GemmDesc& desc, int64_t max_tokens, const gpu::DeviceCaps& caps);
// For a call with up to max_rows rows in num_groups groups. Takes no workspace.
GemmPlan PlanWgmmaGrouped(const GemmDesc& desc, int64_t num_groups, int64_t max_rows,
                          const gpu::DeviceCaps& caps);

// What PlanWgmma() chooses from, and by. Tests and benchmarks run what it would not have chosen.
GemmPlan PlanWgmmaTile(const GemmDesc& desc, int64_t num_tokens, int tile_n, int split_k,
                       const gpu::DeviceCaps& caps);
std::vector<GemmPlan> WgmmaCandidates(const GemmDesc& desc, int64_t num_tokens,
                                      const gpu::DeviceCaps& caps);
double EstimateWgmmaNs(const GemmDesc& desc, int64_t num_tokens, const GemmPlan& plan,
                       const gpu::DeviceCaps& caps);

// ---- Running ----

// REQUIRES: launch.plan is one of the above for `desc`; args as gemm_run.cc checks and makes them,
// args.partials being a workspace of plan.workspace_bytes. INVALID_ARGUMENT for more tiles or
// groups than the kernel can count.
absl::Status LaunchWgmma(const GemmDesc& desc, const GemmLaunch& launch);

}  // namespace nibble::kernels::cuda
