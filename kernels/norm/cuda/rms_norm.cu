// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "kernels/norm/cuda/rms_norm.h"
#include "kernels/quant/cuda/row_plan.h"
#include "kernels/quant/cuda/write_row.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxHidden = 65536;

struct Shared {
  float sums[kMaxRowWarps];
  RowScratch row;
};

struct NoDelta {};

// x, with the delta added and written back.
template <typename Delta>
__device__ __forceinline__ Float8 AddDelta(const RmsNormArgs& args, int64_t row, int64_t column) {
  float* const x = args.x + row * args.x_stride + column;
  Float8 sum = Load8(x);
  if constexpr (!std::is_same_v<Delta, NoDelta>) {
    const Float8 delta =
        Load8(static_cast<const Delta*>(args.delta.data) + row * args.delta.stride + column);
#pragma unroll
    for (int e = 0; e < kElements; ++e) sum.v[e] += delta.v[e];
    Store8(x, sum);
  }
  return sum;
}

template <int kHeld, typename Delta>
__global__ __launch_bounds__(kMaxRowThreads) void RmsNormKernel(RmsNormArgs args) {
  auto* const shared = gpu::SharedAs<Shared>();
  const int64_t row = blockIdx.x;
  const int num_chunks = static_cast<int>(args.hidden / kElements);
  // Read before anybody waits for the sum, where registers suffice.
  constexpr bool kHoldsWeight = kHeld > 0 && kHeld <= 4;
  Float8 held[kHeld > 0 ? kHeld : 1];
  Float8 weights[kHoldsWeight ? kHeld : 1];
  float squares = 0.0F;
  ForChunks<kHeld>(num_chunks, [&](int i, int chunk) {
    if constexpr (kHoldsWeight) weights[i] = Load8(args.weight + chunk * kElements);
    const Float8 x = AddDelta<Delta>(args, row, chunk * kElements);
#pragma unroll
    for (int e = 0; e < kElements; ++e) squares = fmaf(x.v[e], x.v[e], squares);
    if constexpr (kHeld > 0) held[i] = x;
  });
  const float mean = gpu::BlockSum(squares, shared->sums) / static_cast<float>(args.hidden);
  const float inverse = 1.0F / sqrtf(mean + args.epsilon);

  const float* const again = args.x + row * args.x_stride;  // this thread's own writes
  WriteRow<kHeld>(args.out, row, num_chunks, &shared->row, [&](int i, int chunk) {
    Float8 y;
    if constexpr (kHeld > 0) {
      y = held[i];
    } else {
      y = Load8(again + chunk * kElements);
    }
    Float8 weight;
    if constexpr (kHoldsWeight) {
      weight = weights[i];
    } else {
      weight = Load8(args.weight + chunk * kElements);
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) y.v[e] = y.v[e] * inverse * weight.v[e];
    return y;
  });
}

template <typename Delta>
absl::Status LaunchFor(const RmsNormArgs& args, cudaStream_t stream) {
  const RowPlan plan = PlanRow(args.hidden);
  return WithHeld(plan.held, [&](auto held) {
    return gpu::Launch(RmsNormKernel<decltype(held)::value, Delta>,
                       {.grid = {static_cast<unsigned>(args.num_rows)},
                        .block = {plan.threads},
                        .shared_bytes = sizeof(Shared),
                        .stream = stream},
                       args);
  });
}

}  // namespace

absl::Status RmsNorm(const RmsNormArgs& args, cudaStream_t stream) {
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
  if (args.delta.data == nullptr) return LaunchFor<NoDelta>(args, stream);
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("delta", args.delta, args.num_rows, args.hidden));
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
