// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Run() and RunGrouped() with a plan given: for tests and benchmarks, which run what Choose() would
// not have chosen.
#pragma once

#include "kernels/gemm/cuda/gemm.h"

namespace nibble::kernels::cuda {

// REQUIRES: `plan` is one of gemm_plan.h or wgmma_gemm.h for the weight and args.m.
absl::Status RunPlanned(const DeviceWeight& weight, const DeviceGemmArgs& args,
                        const GemmPlan& plan, const GemmContext& context, cudaStream_t stream);
absl::Status RunGroupedPlanned(const GroupedWeights& weights, const DeviceGroupedGemmArgs& args,
                               const GemmPlan& plan, const GemmContext& context,
                               cudaStream_t stream);

}  // namespace nibble::kernels::cuda
