// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Attention in float32, for any head_dim and any types: exactness mode, and the shapes that the
// tensor-core kernels do not have. The operations of kernels/attention/attention_tile_impl.h in
// their order, so that a context of one segment has the bits of the CPU's kernels (merging takes
// another exp there).
//
// A block has 16 rows, 4 for each warp. Keys of a tile are in shared memory as floats; a lane
// scores two of them. Values are read where they lie; a lane has every 32nd column.
#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/attention/cuda/attention_units.cuh"
#include "kernels/device/exp.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * gpu::kWarpSize;
constexpr int kWarpRows = static_cast<int>(kPlainRows) / kWarps;
constexpr int kTileKeys = 64;
constexpr int kMaxColumns = 256 / gpu::kWarpSize;  // of a lane
constexpr int kSegmentKeys = static_cast<int>(kPlainSegmentKeys);

struct NaturalExp {
  static __device__ __forceinline__ float Of(float x) { return Exp(x); }
};

// Followed by queries [16][head_dim] and keys [64][head_dim + 1]; the odd stride spreads a
// component of all keys over the banks.
struct Shared {
  int64_t cache_rows[kTileKeys];
  float key_scales[kTileKeys];
  float value_scales[kTileKeys];
  float weights[kPlainRows][kTileKeys];
  int last;
};

struct RowState {
  float max;
  float sum;
  float acc[kMaxColumns];
};

__device__ __forceinline__ float ElementAsFloat(const float* data, int64_t idx) {
  return data[idx];
}
__device__ __forceinline__ float ElementAsFloat(const gpu::Bf16* data, int64_t idx) {
  return gpu::ToFloat(data[idx]);
}
__device__ __forceinline__ float ElementAsFloat(const int8_t* data, int64_t idx) {
  return static_cast<float>(data[idx]);
}

__device__ __forceinline__ float* Queries(Shared* shared) {
  return reinterpret_cast<float*>(shared + 1);
}
__device__ __forceinline__ float* Keys(const AttentionParams& p, Shared* shared) {
  return Queries(shared) + kPlainRows * p.head_dim;
}

template <typename Activation>
__device__ void LoadQueries(const AttentionParams& p, const WorkItem& item, Shared* shared) {
  for (int row = gpu::WarpId(); row < item.task.num_rows; row += kWarps) {
    const int64_t from = RowOffset(p, item, row, p.q_stride);
    for (int d = gpu::LaneId(); d < p.head_dim; d += gpu::kWarpSize) {
      Queries(shared)[row * p.head_dim + d] =
          ElementAsFloat(static_cast<const Activation*>(p.q), from + d);
    }
  }
}

// Positions [begin, end) of the tile, keys as floats.
template <typename Kv>
__device__ void LoadTile(const AttentionParams& p, const WorkItem& item, int tile, int begin,
                         int end, Shared* shared) {
  const int key = static_cast<int>(threadIdx.x);
  if (key < kTileKeys && tile + key >= begin && tile + key < end) {
    const int64_t row = CacheRow(p, item, tile + key);
    shared->cache_rows[key] = row;
    shared->key_scales[key] = p.key_scales != nullptr ? p.key_scales[row] : 1.0F;
    shared->value_scales[key] = p.value_scales != nullptr ? p.value_scales[row] : 1.0F;
  }
  __syncthreads();
  float* const keys = Keys(p, shared);
  for (int i = begin - tile + gpu::WarpId(); i < end - tile; i += kWarps) {
    const int64_t from = shared->cache_rows[i] * p.head_dim;
    for (int d = gpu::LaneId(); d < p.head_dim; d += gpu::kWarpSize) {
      keys[i * (p.head_dim + 1) + d] = ElementAsFloat(static_cast<const Kv*>(p.keys), from + d);
    }
  }
  __syncthreads();
}

// The lanes' two weights added as 16 lanes over 4 strips of 16 keys do it.
__device__ __forceinline__ float SumWeights(float low, float high) {
  const float strip_1 = __shfl_xor_sync(gpu::kFullMask, low, 16);
  const float strip_3 = __shfl_xor_sync(gpu::kFullMask, high, 16);
  float sum = 0.0F + low;
  sum = sum + strip_1;
  sum = sum + high;
  sum = sum + strip_3;
  for (int bits = 8; bits > 0; bits /= 2) sum += __shfl_xor_sync(gpu::kFullMask, sum, bits);
  return __shfl_sync(gpu::kFullMask, sum, 0);
}

// Keys [first, last) of the tile into the maximum and sum of one row; their weights into shared
// memory.
__device__ void ScoreRow(const AttentionParams& p, int row, int first, int last, Shared* shared,
                         RowState* state) {
  const float* const q = Queries(shared) + row * p.head_dim;
  const float* const keys = Keys(p, shared);
  const bool scaled = p.key_scales != nullptr;
  float scores[2];
  bool visible[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int key = gpu::LaneId() + i * gpu::kWarpSize;
    visible[i] = key >= first && key < last;
    float score = 0.0F;
    if (visible[i]) {
      for (int d = 0; d < p.head_dim; ++d) {
        score = fmaf(q[d], keys[key * (p.head_dim + 1) + d], score);
      }
      if (scaled) score *= shared->key_scales[key];
      score *= p.scale;
    }
    scores[i] = visible[i] ? score : EmptyMax();
  }
  const float tile_max = gpu::WarpMax(fmaxf(scores[0], scores[1]));
  const float max = tile_max > state->max ? tile_max : state->max;
  const float correction = max != state->max ? Exp(state->max - max) : 1.0F;
  float weights[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) weights[i] = visible[i] ? Exp(scores[i] - max) : 0.0F;
  state->sum = state->sum * correction + SumWeights(weights[0], weights[1]);
  state->max = max;
  if (correction != 1.0F) {
#pragma unroll
    for (int c = 0; c < kMaxColumns; ++c) state->acc[c] *= correction;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int key = gpu::LaneId() + i * gpu::kWarpSize;
    if (visible[i] && scaled) weights[i] *= shared->value_scales[key];
    shared->weights[row][key] = weights[i];
  }
  __syncwarp();
}

// Adds the values of a tile to the warp's rows; first and last are what each row sees of it.
template <typename Kv>
__device__ void AddValues(const AttentionParams& p, const Shared& shared, int first_row,
                          const int (&first)[kWarpRows], const int (&last)[kWarpRows],
                          RowState (&states)[kWarpRows]) {
  int begin = kTileKeys;
  int end = 0;
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    if (first[r] >= last[r]) continue;
    begin = min(begin, first[r]);
    end = max(end, last[r]);
  }
  for (int key = begin; key < end; ++key) {
    const auto* const value =
        static_cast<const Kv*>(p.values) + shared.cache_rows[key] * p.head_dim;
#pragma unroll
    for (int c = 0; c < kMaxColumns; ++c) {
      const int column = gpu::LaneId() + c * gpu::kWarpSize;
      if (column >= p.head_dim) break;
      const float element = ElementAsFloat(value, column);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        // What a row does not see never enters its arithmetic, not even with weight 0.
        if (key < first[r] || key >= last[r]) continue;
        states[r].acc[c] = fmaf(shared.weights[first_row + r][key], element, states[r].acc[c]);
      }
    }
  }
}

__device__ __forceinline__ void Clear(RowState* state) {
  state->max = EmptyMax();
  state->sum = 0.0F;
#pragma unroll
  for (int c = 0; c < kMaxColumns; ++c) state->acc[c] = 0.0F;
}

template <typename Kv>
__device__ void RunSegment(const AttentionParams& p, const WorkItem& item, int segment,
                           Shared* shared, RowState (&states)[kWarpRows]) {
  // Positions that any row of the block sees.
  const int first_visible = FirstVisible(p, RowPosition(p, item.task, 0));
  const int end_visible = RowPosition(p, item.task, item.task.num_rows - 1) + 1;
  const int begin = max(first_visible, segment * kSegmentKeys);
  const int end = min(end_visible, (segment + 1) * kSegmentKeys);
  const int first_row = gpu::WarpId() * kWarpRows;
  for (int tile = begin / kTileKeys * kTileKeys; tile < end; tile += kTileKeys) {
    LoadTile<Kv>(p, item, tile, max(begin, tile), min(end, tile + kTileKeys), shared);
    int first[kWarpRows];
    int last[kWarpRows];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const bool exists = first_row + r < item.task.num_rows;
      const int position = exists ? RowPosition(p, item.task, first_row + r) : -1;
      first[r] = max(FirstVisible(p, position) - tile, 0);
      last[r] = min(position + 1 - tile, kTileKeys);
      if (first[r] < last[r]) ScoreRow(p, first_row + r, first[r], last[r], shared, &states[r]);
    }
    AddValues<Kv>(p, *shared, first_row, first, last, states);
    __syncthreads();
  }
}

template <typename Kv, typename Activation>
__device__ void RunItem(const AttentionParams& p, const WorkItem& item, Shared* shared) {
  LoadQueries<Activation>(p, item, shared);
  RowState totals[kWarpRows];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) Clear(&totals[r]);
  const bool split = item.task.num_units > 1;
  const int first_segment =
      max(item.segment_begin, FirstVisible(p, RowPosition(p, item.task, 0)) / kSegmentKeys);
  for (int segment = first_segment; segment < item.segment_end; ++segment) {
    RowState states[kWarpRows];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) Clear(&states[r]);
    RunSegment<Kv>(p, item, segment, shared, states);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const int row = gpu::WarpId() * kWarpRows + r;
      if (row >= item.task.num_rows) continue;
      if (split) {
        const int64_t state = StateRow(p, item, segment, row);
        if (gpu::LaneId() == 0) p.state_sums[state] = make_float2(states[r].max, states[r].sum);
#pragma unroll
        for (int c = 0; c < kMaxColumns; ++c) {
          const int column = gpu::LaneId() + c * gpu::kWarpSize;
          if (column < p.head_dim) p.states[state * p.head_dim + column] = states[r].acc[c];
        }
      } else if (!IsEmpty(states[r].max, states[r].sum)) {
        const MergeFactors factors = Factors<NaturalExp>(&totals[r].max, states[r].max);
        totals[r].sum = Merge(totals[r].sum, states[r].sum, factors);
#pragma unroll
        for (int c = 0; c < kMaxColumns; ++c) {
          totals[r].acc[c] = Merge(totals[r].acc[c], states[r].acc[c], factors);
        }
      }
    }
  }
  if (split) {
    if (IsLastOfTask(p, item, &shared->last)) {
      MergeStates<NaturalExp, Activation>(p, item, kSegmentKeys);
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = gpu::WarpId() * kWarpRows + r;
    if (row >= item.task.num_rows) continue;
    const float inverse = Reciprocal(totals[r].sum);
    const int64_t out = RowOffset(p, item, row, p.out_stride);
#pragma unroll
    for (int c = 0; c < kMaxColumns; ++c) {
      const int column = gpu::LaneId() + c * gpu::kWarpSize;
      if (column < p.head_dim) StoreAs<Activation>(p.out, out + column, totals[r].acc[c] * inverse);
    }
  }
}

template <typename Kv, typename Activation>
__global__ void __launch_bounds__(kThreads)
    PlainAttention(const __grid_constant__ AttentionParams p) {
  Shared* const shared = gpu::SharedAs<Shared>();
  const int num_items = NumWorkItems(p);
  for (int i = static_cast<int>(blockIdx.x); i < num_items; i += static_cast<int>(gridDim.x)) {
    RunItem<Kv, Activation>(p, LoadWorkItem(p, i), shared);
    __syncthreads();
  }
}

template <typename Kv, typename Activation>
absl::Status Launch(const AttentionParams& params, int64_t num_blocks, cudaStream_t stream) {
  return gpu::Launch(
      PlainAttention<Kv, Activation>,
      {.grid = {static_cast<unsigned>(num_blocks)},
       .block = {kThreads},
       .shared_bytes = static_cast<size_t>(PlainAttentionSharedBytes(params.head_dim)),
       .stream = stream},
      params);
}

template <typename Kv>
AttentionLauncher LauncherOf(DType activation) {
  return activation == DType::kF32 ? Launch<Kv, float> : Launch<Kv, gpu::Bf16>;
}

}  // namespace

int64_t PlainAttentionSharedBytes(int64_t head_dim) {
  return static_cast<int64_t>(sizeof(Shared)) +
         (kPlainRows * head_dim + kTileKeys * (head_dim + 1)) * static_cast<int64_t>(sizeof(float));
}

AttentionLauncher PlainAttentionLauncher(DType kv_dtype, DType activation) {
  if (kv_dtype == DType::kF32) return LauncherOf<float>(activation);
  if (kv_dtype == DType::kBf16) return LauncherOf<gpu::Bf16>(activation);
  return LauncherOf<int8_t>(activation);
}

}  // namespace nibble::kernels::cuda
