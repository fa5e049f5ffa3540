// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "kernels/device/elements.cuh"
#include "kernels/moe/cuda/moe.h"
#include "kernels/quant/cuda/row_plan.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;  // of a block, which has a piece of 1024 columns of a token
constexpr int64_t kMaxHidden = int64_t{1} << 20;

template <typename T>
__global__ __launch_bounds__(kThreads) void CombineKernel(DeviceCombineArgs args,
                                                          int pieces_per_token) {
  const int64_t token = blockIdx.x / pieces_per_token;
  const int piece = static_cast<int>(blockIdx.x % pieces_per_token);
  const int64_t column = int64_t{piece * kThreads + static_cast<int>(threadIdx.x)} * kElements;
  if (column >= args.hidden) return;
  const int k = static_cast<int>(args.num_experts_per_tok);
  const int32_t* const row_of = args.row_of + token * k;
  const float* const weights = args.weights + token * k;
  const int64_t at = token * args.out.stride + column;
  Float8 sum = {};
  bool adds = args.accumulate;
  if (adds) sum = Load8(args.out, at);
#pragma unroll 2
  for (int j = 0; j < k; ++j) {
    const int64_t row = row_of[j];
    if (row < 0) continue;
    const float weight = weights[j];
    const Float8 y = Load8(static_cast<const T*>(args.y.data) + row * args.y.stride + column);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      sum.v[e] = adds ? fmaf(weight, y.v[e], sum.v[e]) : weight * y.v[e];
    }
    adds = true;
  }
  Store8(args.out, at, sum);
}

template <typename T>
absl::Status LaunchFor(const DeviceCombineArgs& args, cudaStream_t stream) {
  const int64_t chunks = args.hidden / kElements;
  const int64_t pieces = (chunks + kThreads - 1) / kThreads;
  NIBBLE_RETURN_IF_ERROR(CheckGrid(args.num_tokens, pieces));
  return gpu::Launch(CombineKernel<T>,
                     {.grid = {static_cast<unsigned>(args.num_tokens * pieces)},
                      .block = {kThreads},
                      .stream = stream},
                     args, pieces);
}

}  // namespace

absl::Status Combine(const DeviceCombineArgs& args, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckColumns("hidden", args.hidden, kMaxHidden));
  if (args.num_experts_per_tok < 1 || args.num_experts_per_tok > kMaxExperts) {
    return InvalidArgument("tokens go to {} experts, the limits are 1 and {}",
                           args.num_experts_per_tok, kMaxExperts);
  }
  // How many rows y has is in device memory; there may be none.
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("y", args.y, 0, args.hidden));
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("the output", args.out, args.num_tokens, args.hidden));
  switch (args.y.dtype) {
    case DType::kBf16:
      return LaunchFor<gpu::Bf16>(args, stream);
    case DType::kF16:
      return LaunchFor<gpu::Half>(args, stream);
    default:
      return LaunchFor<float>(args, stream);
  }
}

}  // namespace nibble::kernels::cuda
