// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A row's state in the mma kernels. It goes from tile to tile of a segment:
//   m' = max(m, max_j s_j),  w_j = bf16(2^(s_j - m')),  acc' = acc 2^(m - m') + sum_j w_j v_j
// with s in units of log2. The sum of the weights is one more column of the product, of ones, so it
// is of the rounded weights and in the tensor core's order, whichever warp asks. exp2f is off by 2
// units in the last place at most (CUDA programming guide, table of single-precision functions).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/float16.cuh"
#include "base/cuda/reduce.cuh"
#include "kernels/attention/cuda/attention_units.cuh"

namespace nibble::kernels::cuda::mma {

struct BinaryExp {
  static __device__ __forceinline__ float Of(float x) { return exp2f(x); }
};

// Rows g and g + 8 of the warp's 16, g = lane / 4, and 8 * kColumns columns of them, the lane's
// share as mma.cuh has it.
template <int kColumns>
struct State {
  float max[2];
  float sum[4];  // [0] and [2], as of a column
  float acc[kColumns][4];

  __device__ __forceinline__ void Clear() {
    max[0] = max[1] = EmptyMax();
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = 0.0F;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[c][i] = 0.0F;
    }
  }
  // To a larger maximum.
  __device__ __forceinline__ void Rescale(const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] *= factors[i / 2];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[c][i] *= factors[i / 2];
    }
  }
  __device__ __forceinline__ void Add(const State& part) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (IsEmpty(part.max[r], part.sum[2 * r])) continue;
      const MergeFactors factors = Factors<BinaryExp>(&max[r], part.max[r]);
      sum[2 * r] = Merge(sum[2 * r], part.sum[2 * r], factors);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i)
          acc[c][i] = Merge(acc[c][i], part.acc[c][i], factors);
      }
    }
  }
};

// Moves the state to the maximum of it and the tile, and makes weights of scores.
template <int kNum, int kColumns>
__device__ __forceinline__ void Weigh(const float (&tile_max)[2], float (&scores)[kNum][4],
                                      State<kColumns>* state) {
  float factors[2];
  float offsets[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float max = fmaxf(state->max[r], tile_max[r]);
    // A row that has seen nothing yet: infinities do not subtract.
    factors[r] = max == EmptyMax() ? 1.0F : exp2f(state->max[r] - max);
    offsets[r] = max == EmptyMax() ? 0.0F : max;
    state->max[r] = max;
  }
  state->Rescale(factors);
#pragma unroll
  for (int n = 0; n < kNum; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = exp2f(scores[n][i] - offsets[i / 2]);
  }
}

// The lane's part of a segment's state to memory. `column` is the first of the warp's.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void StoreState(const AttentionParams& p, const WorkItem& item,
                                           int segment, int warp_row, int column,
                                           const State<kColumns>& state) {
  const int lane = gpu::LaneId();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row + lane / 4 + 8 * r;
    if (row >= item.task.num_rows) continue;
    const int64_t at = StateRow(p, item, segment, row);
    if (lane % 4 == 0 && column == 0) {
      p.state_sums[at] = make_float2(state.max[r], state.sum[2 * r]);
    }
    float* const values = p.states + at * kHeadDim + column + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      *reinterpret_cast<float2*>(values + c * 8) =
          make_float2(state.acc[c][2 * r], state.acc[c][2 * r + 1]);
    }
  }
}

template <int kColumns>
__device__ __forceinline__ void StoreOutput(const AttentionParams& p, const WorkItem& item,
                                            int warp_row, int column,
                                            const State<kColumns>& state) {
  const int lane = gpu::LaneId();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row + lane / 4 + 8 * r;
    if (row >= item.task.num_rows) continue;
    const float inverse = Reciprocal(state.sum[2 * r]);
    auto* const out = static_cast<gpu::Bf16*>(p.out) + RowOffset(p, item, row, p.out_stride) +
                      column + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      *reinterpret_cast<uint32_t*>(out + c * 8) =
          gpu::PackBf16x2(state.acc[c][2 * r] * inverse, state.acc[c][2 * r + 1] * inverse);
    }
  }
}

}  // namespace nibble::kernels::cuda::mma
