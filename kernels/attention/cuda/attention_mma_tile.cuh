// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a tile of keys and values does to the states of rows, in the wide and in the narrow form.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "base/cuda/float16.cuh"
#include "base/cuda/reduce.cuh"
#include "kernels/attention/cuda/attention_mma_state.cuh"
#include "kernels/attention/cuda/attention_tile.cuh"
#include "kernels/attention/cuda/attention_units.cuh"
#include "kernels/device/ldmatrix.cuh"
#include "kernels/device/mma.cuh"

namespace nibble::kernels::cuda::mma {

constexpr int kNumScores = kTileKeys / 8;  // matrices of 8 keys
constexpr uint32_t kOnes = 0x3F803F80;     // two 1.0 of bfloat16

// Of the narrow form, in shared memory: weights of the tile, the same times the values' scales, and
// each warp's maxima.
template <typename Kv>
struct Exchange {
  alignas(16) uint8_t weights[16][kWeightPitch];
  alignas(16) uint8_t scaled[std::is_same_v<Kv, int8_t> ? 16 : 1][kWeightPitch];
  float max[kWarps][16];
};

// Positions of the lane's two rows, and of the first and last of the warp's. -1: no row.
struct Positions {
  int row[2];
  int low;
  int high;
};
__device__ __forceinline__ Positions FindPositions(const AttentionParams& p,
                                                   const AttentionTask& task, int warp_row) {
  Positions positions;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row + gpu::LaneId() / 4 + 8 * r;
    positions.row[r] = row < task.num_rows ? RowPosition(p, task, row) : -1;
  }
  const int num_rows = min(task.num_rows - warp_row, 16);
  positions.low = num_rows > 0 ? RowPosition(p, task, warp_row) : -1;
  positions.high = num_rows > 0 ? RowPosition(p, task, warp_row + num_rows - 1) : -1;
  return positions;
}

// Scores of kNum * 8 keys of the tile from `key` on become scores in units of log2, -inf where
// masked. Returns the rows' maxima on all lanes of a quad.
template <int kNum, typename Kv>
__device__ __forceinline__ void ScaleScores(const AttentionParams& p, const Positions& rows,
                                            int position, const float2* scales, int key,
                                            float (&scores)[kNum][4], float (&max)[2]) {
  const bool full = position >= FirstVisible(p, rows.high) && position + kTileKeys <= rows.low + 1;
  const int first[2] = {FirstVisible(p, rows.row[0]), FirstVisible(p, rows.row[1])};
  max[0] = max[1] = EmptyMax();
#pragma unroll
  for (int n = 0; n < kNum; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = key + n * 8 + gpu::LaneId() % 4 * 2 + i % 2;
      if constexpr (std::is_same_v<Kv, int8_t>) scores[n][i] *= scales[at].x;
      const bool visible =
          full || (position + at >= first[i / 2] && position + at <= rows.row[i / 2]);
      scores[n][i] = visible ? scores[n][i] * p.scale_log2 : EmptyMax();
      max[i / 2] = fmaxf(max[i / 2], scores[n][i]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    max[r] = fmaxf(max[r], __shfl_xor_sync(gpu::kFullMask, max[r], 1));
    max[r] = fmaxf(max[r], __shfl_xor_sync(gpu::kFullMask, max[r], 2));
  }
}

// A weight times its value's scale. What is masked stays 0 beside a scale that is NaN.
__device__ __forceinline__ float ScaledWeight(float weight, float scale) {
  return weight == 0.0F ? 0.0F : weight * scale;
}

// acc += weights (16 keys from `key` on) x values, columns from byte `column` of a row on.
template <int kHeadDim, int kColumns>
__device__ __forceinline__ void AddValues(const uint8_t (*values)[kPitch<kHeadDim>], int key,
                                          int column, const uint32_t (&weights)[4],
                                          State<kColumns>* state) {
  const int lane = gpu::LaneId();
  const uint8_t* const rows = values[key + lane % 16] + column;
#pragma unroll
  for (int c = 0; c + 1 < kColumns; c += 2) {
    uint32_t b[4];
    LoadMatrixX4Trans(b, rows + c * 16 + lane / 16 * 16);
    MmaBf16(state->acc[c], weights, {b[0], b[1]});
    MmaBf16(state->acc[c + 1], weights, {b[2], b[3]});
  }
  if constexpr (kColumns % 2 == 1) {
    uint32_t b[2];
    LoadMatrixX2Trans(b, rows + (kColumns - 1) * 16);
    MmaBf16(state->acc[kColumns - 1], weights, b);
  }
}

// scores += queries x keys: 16 keys from `key` on.
template <int kHeadDim>
__device__ __forceinline__ void ScoreKeys(const uint8_t (*keys)[kPitch<kHeadDim>], int key,
                                          const uint32_t (&q)[kHeadDim / 16][4], float (&low)[4],
                                          float (&high)[4]) {
  const int lane = gpu::LaneId();
  const uint8_t* const row = keys[key + lane / 16 * 8 + lane % 8] + lane / 8 % 2 * 16;
#pragma unroll
  for (int d = 0; d < kHeadDim / 16; ++d) {
    uint32_t b[4];
    LoadMatrixX4(b, row + d * 32);
    MmaBf16(low, q[d], {b[0], b[1]});
    MmaBf16(high, q[d], {b[2], b[3]});
  }
}

// One tile for the warp's 16 rows, all keys and columns.
template <int kHeadDim, typename Kv>
__device__ __forceinline__ void RunWideTile(const AttentionParams& p, const Positions& rows,
                                            int position, const TileView<kHeadDim>& tile,
                                            const uint32_t (&q)[kHeadDim / 16][4],
                                            State<kHeadDim / 8>* state) {
  if (position > rows.high || position + kTileKeys <= FirstVisible(p, rows.low)) return;
  float scores[kNumScores][4] = {};
#pragma unroll
  for (int n = 0; n < kNumScores; n += 2) {
    ScoreKeys<kHeadDim>(tile.keys, n * 8, q, scores[n], scores[n + 1]);
  }
  float max[2];
  ScaleScores<kNumScores, Kv>(p, rows, position, tile.scales, 0, scores, max);
  Weigh(max, scores, state);
#pragma unroll
  for (int n = 0; n < kNumScores; n += 2) {
    uint32_t weights[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[i] = gpu::PackBf16x2(scores[n + i / 2][i % 2 * 2], scores[n + i / 2][i % 2 * 2 + 1]);
    }
    MmaBf16(state->sum, weights, {kOnes, kOnes});
    if constexpr (std::is_same_v<Kv, int8_t>) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2* const scales = tile.scales + (n + i / 2) * 8 + gpu::LaneId() % 4 * 2;
        weights[i] = gpu::PackBf16x2(ScaledWeight(scores[n + i / 2][i % 2 * 2], scales[0].y),
                                     ScaledWeight(scores[n + i / 2][i % 2 * 2 + 1], scales[1].y));
      }
    }
    AddValues<kHeadDim>(tile.values, n * 8, 0, weights, state);
  }
}

// One tile for the block's 16 rows: scores of the warp's 16 keys, sums of the warp's columns.
template <int kHeadDim, typename Kv>
__device__ __forceinline__ void RunNarrowTile(const AttentionParams& p, const Positions& rows,
                                              int position, const TileView<kHeadDim>& tile,
                                              const uint32_t (&q)[kHeadDim / 16][4],
                                              Exchange<Kv>* exchange, State<kHeadDim / 32>* state) {
  const int lane = gpu::LaneId();
  const int warp = gpu::WarpId();
  const int key = warp * 16;
  float scores[2][4] = {};
  ScoreKeys<kHeadDim>(tile.keys, key, q, scores[0], scores[1]);
  float max[2];
  ScaleScores<2, Kv>(p, rows, position, tile.scales, key, scores, max);
  if (lane % 4 == 0) {
    exchange->max[warp][lane / 4] = max[0];
    exchange->max[warp][lane / 4 + 8] = max[1];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) max[r] = fmaxf(max[r], exchange->max[w][lane / 4 + 8 * r]);
  }
  Weigh(max, scores, state);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int at = key + n * 8 + lane % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float low = scores[n][2 * r];
      const float high = scores[n][2 * r + 1];
      const int row = lane / 4 + 8 * r;
      *reinterpret_cast<uint32_t*>(exchange->weights[row] + at * 2) = gpu::PackBf16x2(low, high);
      if constexpr (std::is_same_v<Kv, int8_t>) {
        *reinterpret_cast<uint32_t*>(exchange->scaled[row] + at * 2) = gpu::PackBf16x2(
            ScaledWeight(low, tile.scales[at].y), ScaledWeight(high, tile.scales[at + 1].y));
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kTileKeys; k += 16) {
    uint32_t weights[4];
    LoadMatrixX4(weights, exchange->weights[lane % 16] + k * 2 + lane / 16 * 16);
    MmaBf16(state->sum, weights, {kOnes, kOnes});
    if constexpr (std::is_same_v<Kv, int8_t>) {
      LoadMatrixX4(weights, exchange->scaled[lane % 16] + k * 2 + lane / 16 * 16);
    }
    AddValues<kHeadDim>(tile.values, k, warp * kHeadDim / kWarps * 2, weights, state);
  }
}

}  // namespace nibble::kernels::cuda::mma
