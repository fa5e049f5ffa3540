// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Attention on tensor cores (mma.sync m16n8k16, sm_80 and later): bfloat16 queries, a bfloat16 or
// int8 cache. README.md draws it. Two forms with the same operations for every row, hence the same
// bits:
//
//   narrow  16 rows a block; its 4 warps share the keys of a tile for the scores and the columns of
//           the values for the sums: decode, where memory is the limit
//   wide    64 rows a block, 16 for each warp: chunks
//
// A row's state goes from tile to tile of a segment:
//   m' = max(m, max_j s_j),  w_j = bf16(2^(s_j - m')),  acc' = acc 2^(m - m') + sum_j w_j v_j
// with s in units of log2. The sum of the weights is one more column of the product, of ones, so it
// is of the rounded weights and in the tensor core's order, whichever warp asks. exp2f is off by 2
// units in the last place at most (CUDA programming guide, table of single-precision functions).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "base/cuda/async_copy.cuh"
#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/attention/cuda/attention_tile.cuh"
#include "kernels/attention/cuda/attention_units.cuh"
#include "kernels/device/ldmatrix.cuh"
#include "kernels/device/mma.cuh"

namespace nibble::kernels::cuda::mma {

constexpr int kSegmentKeys = static_cast<int>(kMmaSegmentKeys);
constexpr int kSegmentTiles = kSegmentKeys / kTileKeys;
constexpr int kNumScores = kTileKeys / 8;  // matrices of 8 keys
constexpr uint32_t kOnes = 0x3F803F80;     // two 1.0 of bfloat16

struct BinaryExp {
  static __device__ __forceinline__ float Of(float x) { return exp2f(x); }
};

template <int kHeadDim, typename Kv, bool kWide>
struct Shared {
  Tiles<kHeadDim, Kv> tiles;
  // Of the narrow form: weights of the tile, the same times the values' scales, and each warp's
  // maxima.
  struct Exchange {
    alignas(16) uint8_t weights[16][kWeightPitch];
    alignas(16) uint8_t scaled[std::is_same_v<Kv, int8_t> ? 16 : 1][kWeightPitch];
    float max[kWarps][16];
  };
  struct Nothing {};
  std::conditional_t<kWide, Nothing, Exchange> exchange;
  WorkItem item;  // registers are short
  int last;
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
__device__ __forceinline__ void RunNarrowTile(
    const AttentionParams& p, const Positions& rows, int position, const TileView<kHeadDim>& tile,
    const uint32_t (&q)[kHeadDim / 16][4], typename Shared<kHeadDim, Kv, false>::Exchange* exchange,
    State<kHeadDim / 32>* state) {
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

template <int kHeadDim, typename Kv, bool kWide>
__device__ __forceinline__ void RunItem(const AttentionParams& p,
                                        Shared<kHeadDim, Kv, kWide>* shared) {
  const WorkItem& item = shared->item;
  constexpr int kColumns = kWide ? kHeadDim / 8 : kHeadDim / 32;
  const int warp_row = kWide ? gpu::WarpId() * 16 : 0;
  const int column = kWide ? 0 : gpu::WarpId() * (kHeadDim / kWarps);

  // Positions that any row of the block sees, and tiles of them that the unit has.
  const int first_visible = FirstVisible(p, RowPosition(p, item.task, 0));
  const int end_visible =
      item.task.num_segments == 0 ? 0 : RowPosition(p, item.task, item.task.num_rows - 1) + 1;
  const int begin = max(first_visible, item.segment_begin * kSegmentKeys);
  const int end = min(end_visible, item.segment_end * kSegmentKeys);
  const int first_tile = begin / kTileKeys;
  const int end_tile = begin < end ? (end + kTileKeys - 1) / kTileKeys : first_tile;

  TileLoader<kHeadDim, Kv> loader{.begin = first_visible, .end = end_visible};
  if (first_tile < end_tile) loader.Start(p, item, first_tile * kTileKeys, 0, &shared->tiles);
  uint32_t q[kHeadDim / 16][4];
  LoadQueries<kHeadDim>(p, item, kWide ? 64 : 16, warp_row, shared->tiles.QueryRows(), q);

  const Positions positions = FindPositions(p, item.task, warp_row);
  const bool split = item.task.num_units > 1;
  State<kColumns> total;
  State<kColumns> state;
  total.Clear();
  state.Clear();
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const int stage = (tile - first_tile) % 2;
    loader.Wait(stage, &shared->tiles);
    if (tile + 1 < end_tile) {
      loader.Start(p, item, (tile + 1) * kTileKeys, 1 - stage, &shared->tiles);
    }
    const TileView<kHeadDim> view = loader.View(stage, &shared->tiles);
    if constexpr (kWide) {
      RunWideTile<kHeadDim, Kv>(p, positions, tile * kTileKeys, view, q, &state);
    } else {
      RunNarrowTile<kHeadDim, Kv>(p, positions, tile * kTileKeys, view, q, &shared->exchange,
                                  &state);
    }
    if ((tile + 1) % kSegmentTiles != 0 && tile + 1 != end_tile) continue;
    if (split) {
      StoreState<kHeadDim>(p, item, tile / kSegmentTiles, warp_row, column, state);
    } else {
      total.Add(state);
    }
    state.Clear();
  }
  if (!split) {
    StoreOutput(p, item, warp_row, column, total);
  } else if (IsLastOfTask(p, item, &shared->last)) {
    MergeStates<BinaryExp, gpu::Bf16>(p, item, kSegmentKeys);
  }
}

template <int kHeadDim, typename Kv, bool kWide>
__global__ void __launch_bounds__(kThreads, kHeadDim <= 128 ? 2 : 1)
    MmaAttention(const __grid_constant__ AttentionParams p) {
  auto* const shared = gpu::SharedAs<Shared<kHeadDim, Kv, kWide>>();
  const int num_items = NumWorkItems(p);
  for (int i = static_cast<int>(blockIdx.x); i < num_items; i += static_cast<int>(gridDim.x)) {
    if (threadIdx.x == 0) shared->item = LoadWorkItem(p, i);
    __syncthreads();
    RunItem<kHeadDim, Kv, kWide>(p, shared);
    __syncthreads();
  }
}

template <int kHeadDim, typename Kv, bool kWide>
absl::Status Launch(const AttentionParams& params, int64_t num_blocks, cudaStream_t stream) {
  return gpu::Launch(MmaAttention<kHeadDim, Kv, kWide>,
                     {.grid = {static_cast<unsigned>(num_blocks)},
                      .block = {kThreads},
                      .shared_bytes = sizeof(Shared<kHeadDim, Kv, kWide>),
                      .stream = stream},
                     params);
}

// Head sizes whose sums of 64 rows do not fit in the registers have the narrow form alone.
template <int kHeadDim>
constexpr MmaInstance InstanceOf() {
  constexpr bool kHasWide = kHeadDim <= 128;
  MmaInstance instance{
      .head_dim = kHeadDim,
      .bf16 = {Launch<kHeadDim, gpu::Bf16, false>, nullptr},
      .int8 = {Launch<kHeadDim, int8_t, false>, nullptr},
      .shared_bytes = static_cast<int64_t>(std::max(sizeof(Shared<kHeadDim, gpu::Bf16, false>),
                                                    sizeof(Shared<kHeadDim, int8_t, false>)))};
  if constexpr (kHasWide) {
    instance.bf16[1] = Launch<kHeadDim, gpu::Bf16, true>;
    instance.int8[1] = Launch<kHeadDim, int8_t, true>;
  }
  return instance;
}

}  // namespace nibble::kernels::cuda::mma
