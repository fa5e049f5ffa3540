// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// RMSNorm of a row, for kernels that have just made its delta.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "base/cuda/reduce.cuh"
#include "kernels/norm/cuda/rms_norm.h"
#include "kernels/quant/cuda/write_row.cuh"

namespace nibble::kernels::cuda {

struct RmsNormShared {
  float sums[kMaxRowWarps];
  RowScratch row;
};

// Of rows to which nothing is added.
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

// One row, by a block of PlanRow(hidden).threads. kHeld: the plan's, or 0, which has the same bits.
template <int kHeld, typename Delta>
__device__ __forceinline__ void RmsNormRow(const RmsNormArgs& args, int64_t row,
                                           RmsNormShared* shared) {
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

}  // namespace nibble::kernels::cuda
