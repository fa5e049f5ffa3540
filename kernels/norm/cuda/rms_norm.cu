// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "kernels/norm/cuda/rms_norm.h"
#include "kernels/norm/cuda/rms_norm_row.cuh"
#include "kernels/quant/cuda/row_plan.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxHidden = 65536;

template <int kHeld, typename Delta>
__global__ __launch_bounds__(kMaxRowThreads) void RmsNormKernel(RmsNormArgs args) {
  RmsNormRow<kHeld, Delta>(args, blockIdx.x, gpu::SharedAs<RmsNormShared>());
}

template <typename Delta>
absl::Status LaunchFor(const RmsNormArgs& args, cudaStream_t stream) {
  const RowPlan plan = PlanRow(args.hidden);
  return WithHeld(plan.held, [&](auto held) {
    return gpu::Launch(RmsNormKernel<decltype(held)::value, Delta>,
                       {.grid = {static_cast<unsigned>(args.num_rows)},
                        .block = {plan.threads},
                        .shared_bytes = sizeof(RmsNormShared),
                        .stream = stream},
                       args);
  });
}

}  // namespace

absl::Status CheckRmsNorm(const RmsNormArgs& args) {
  NIBBLE_RETURN_IF_ERROR(CheckColumns("hidden", args.hidden, kMaxHidden));
  NIBBLE_RETURN_IF_ERROR(
      CheckMatrix("x", {.data = args.x, .dtype = DType::kF32, .stride = args.x_stride},
                  args.num_rows, args.hidden));
  // One row, whatever there are: weights are read the same way.
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(
      "the weight",
      {.data = const_cast<float*>(args.weight), .dtype = DType::kF32, .stride = args.hidden}, 1,
      args.hidden));
  NIBBLE_RETURN_IF_ERROR(CheckOutput(args.out, args.num_rows, args.hidden));
  if (args.delta.data == nullptr) return absl::OkStatus();
  return CheckMatrix("delta", args.delta, args.num_rows, args.hidden);
}

absl::Status RmsNorm(const RmsNormArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckRmsNorm(args));
  if (args.delta.data == nullptr) return LaunchFor<NoDelta>(args, stream);
  switch (args.delta.dtype) {
    case DType::kBf16:
      return LaunchFor<gpu::Bf16>(args, stream);
    case DType::kF16:
      return LaunchFor<gpu::Half>(args, stream);
    default:
      return LaunchFor<float>(args, stream);
  }
}

}  // namespace nibble::kernels::cuda
