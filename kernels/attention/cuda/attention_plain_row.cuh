// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Attention in float32, of the rows of one block: 16, 4 for each warp. Keys of a tile are in shared
// memory as floats; a lane scores two of them. Values are read where they lie; a lane has every
// 32nd column.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/float16.cuh"
#include "base/cuda/reduce.cuh"
#include "kernels/attention/cuda/attention_units.cuh"
#include "kernels/device/exp.cuh"

namespace nibble::kernels::cuda::plain {

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
__device__ inline void ScoreRow(const AttentionParams& p, int row, int first, int last,
                                Shared* shared, RowState* state) {
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

}  // namespace nibble::kernels::cuda::plain
