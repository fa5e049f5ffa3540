// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tiles of 64 keys and values on their way from the paged cache to shared memory, two at a time:
// one is worked on while the next one comes. Rows are 16 bytes longer than a head, so that eight
// rows of a matrix lie in different banks. int8 is copied as it is and converted to bfloat16, which
// holds it exactly, when its turn comes; its scales come beside it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/async_copy.cuh"
#include "base/cuda/float16.cuh"
#include "base/cuda/reduce.cuh"
#include "kernels/attention/cuda/attention_units.cuh"
#include "kernels/device/ldmatrix.cuh"

namespace nibble::kernels::cuda::mma {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * gpu::kWarpSize;
constexpr int kTileKeys = 64;
template <int kHeadDim>
constexpr int kPitch = kHeadDim * 2 + 16;
constexpr int kWeightPitch = kTileKeys * 2 + 16;

template <int kHeadDim>
struct TileView {
  const uint8_t (*keys)[kPitch<kHeadDim>];  // [64] rows of bfloat16
  const uint8_t (*values)[kPitch<kHeadDim>];
  const float2* scales;  // [64]: of key and value; int8 only
};

template <int kHeadDim, typename Kv>
struct Tiles {
  alignas(16) uint8_t keys[2][kTileKeys][kPitch<kHeadDim>];
  alignas(16) uint8_t values[2][kTileKeys][kPitch<kHeadDim>];

  // Free until the second tile comes.
  __device__ __forceinline__ uint8_t (*QueryRows())[kPitch<kHeadDim>] { return keys[1]; }
  __device__ __forceinline__ uint8_t* KeyRow(int stage, int key) { return keys[stage][key]; }
  __device__ __forceinline__ uint8_t* ValueRow(int stage, int key) { return values[stage][key]; }
};
template <int kHeadDim>
struct Tiles<kHeadDim, int8_t> {
  alignas(16) uint8_t raw_keys[2][kTileKeys][kHeadDim];
  alignas(16) uint8_t raw_values[2][kTileKeys][kHeadDim];
  alignas(16) uint8_t keys[kTileKeys][kPitch<kHeadDim>];
  alignas(16) uint8_t values[kTileKeys][kPitch<kHeadDim>];
  float2 scales[2][kTileKeys];

  __device__ __forceinline__ uint8_t (*QueryRows())[kPitch<kHeadDim>] { return keys; }
  __device__ __forceinline__ uint8_t* KeyRow(int stage, int key) { return raw_keys[stage][key]; }
  __device__ __forceinline__ uint8_t* ValueRow(int stage, int key) {
    return raw_values[stage][key];
  }
};

// Two of four int8 as floats' bits: 2^23 + 128 + x is a float whose last byte is x + 128.
__device__ __forceinline__ uint32_t Int8PairAsBf16x2(uint32_t shifted, uint32_t low_selector) {
  constexpr uint32_t kExponent = 0x4B000000;
  constexpr float kOffset = 8388608.0F + 128.0F;
  const float low = __uint_as_float(__byte_perm(shifted, kExponent, low_selector)) - kOffset;
  const float high = __uint_as_float(__byte_perm(shifted, kExponent, low_selector + 1)) - kOffset;
  // Eight significant bits at most: the upper half of a float is all of it.
  return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

// 16 int8 to 16 bfloat16.
__device__ __forceinline__ void ConvertChunk(const uint8_t* from, uint8_t* to) {
  const uint4 bytes = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t a = words[2 * i] ^ 0x80808080U;
    const uint32_t b = words[2 * i + 1] ^ 0x80808080U;
    *reinterpret_cast<uint4*>(to + i * 16) =
        make_uint4(Int8PairAsBf16x2(a, 0x7440), Int8PairAsBf16x2(a, 0x7442),
                   Int8PairAsBf16x2(b, 0x7440), Int8PairAsBf16x2(b, 0x7442));
  }
}

template <int kHeadDim, typename Kv>
struct TileLoader {
  static constexpr bool kIsInt8 = sizeof(Kv) == 1;
  static constexpr int kChunks = kHeadDim * static_cast<int>(sizeof(Kv)) / 16;  // of a row
  // Positions that any row sees. The others become zeros: nothing that they hold, a NaN least of
  // all, may meet a weight of 0.
  int begin;
  int end;

  // Asks for the tile at `position`. The block must have passed Wait() of the tile before it.
  __device__ __forceinline__ void Start(const AttentionParams& p, const WorkItem& item,
                                        int position, int stage, Tiles<kHeadDim, Kv>* tiles) {
    const auto* const keys = static_cast<const uint8_t*>(p.keys);
    const auto* const values = static_cast<const uint8_t*>(p.values);
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 2
    for (int i = thread; i < kTileKeys * kChunks; i += kThreads) {
      const int key = i / kChunks;
      const int chunk = i % kChunks;
      const bool exists = position + key >= begin && position + key < end;
      const int64_t row = exists ? CacheRow(p, item, position + key) : 0;
      const int64_t from = (row * kChunks + chunk) * 16;
      gpu::CopyAsync16(tiles->KeyRow(stage, key) + chunk * 16, keys + from, !exists);
      gpu::CopyAsync16(tiles->ValueRow(stage, key) + chunk * 16, values + from, !exists);
    }
    if constexpr (kIsInt8) {
      static_assert(kThreads == 2 * kTileKeys);
      const int key = thread % kTileKeys;
      const bool exists = position + key >= begin && position + key < end;
      const int64_t row = exists ? CacheRow(p, item, position + key) : 0;
      float2* const scales = &tiles->scales[stage][key];
      if (thread < kTileKeys) {
        gpu::CopyAsync4(&scales->x, p.key_scales + row, !exists);
      } else {
        gpu::CopyAsync4(&scales->y, p.value_scales + row, !exists);
      }
    }
    gpu::CopyAsyncCommit();
  }

  // The tile started last is there for all, and all are done with the one before it.
  __device__ __forceinline__ void Wait(int stage, Tiles<kHeadDim, Kv>* tiles) {
    const int thread = static_cast<int>(threadIdx.x);
    gpu::CopyAsyncWait<0>();
    __syncthreads();
    if constexpr (kIsInt8) {
#pragma unroll 2
      for (int i = thread; i < kTileKeys * kChunks; i += kThreads) {
        const int key = i / kChunks;
        const int chunk = i % kChunks;
        ConvertChunk(tiles->KeyRow(stage, key) + chunk * 16, tiles->keys[key] + chunk * 32);
        ConvertChunk(tiles->ValueRow(stage, key) + chunk * 16, tiles->values[key] + chunk * 32);
      }
      __syncthreads();
    }
  }

  __device__ __forceinline__ TileView<kHeadDim> View(int stage, const Tiles<kHeadDim, Kv>* tiles) {
    if constexpr (kIsInt8) {
      return {tiles->keys, tiles->values, tiles->scales[stage]};
    } else {
      return {tiles->keys[stage], tiles->values[stage], nullptr};
    }
  }
};

// The warp's 16 rows as A operands, by way of `rows`, which the whole block fills: rows beyond the
// task's are zeros.
template <int kHeadDim>
__device__ __forceinline__ void LoadQueries(const AttentionParams& p, const WorkItem& item,
                                            int num_rows, int warp_row,
                                            uint8_t (*rows)[kPitch<kHeadDim>],
                                            uint32_t (&q)[kHeadDim / 16][4]) {
  constexpr int kChunks = kHeadDim / 8;
  const auto* const from = static_cast<const gpu::Bf16*>(p.q);
  for (int i = static_cast<int>(threadIdx.x); i < num_rows * kChunks; i += kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const bool exists = row < item.task.num_rows;
    const int64_t at = exists ? RowOffset(p, item, row, p.q_stride) + chunk * 8 : 0;
    gpu::CopyAsync16(rows[row] + chunk * 16, from + at, !exists);
  }
  gpu::CopyAsyncCommit();
  gpu::CopyAsyncWait<0>();
  __syncthreads();
  const int lane = gpu::LaneId();
#pragma unroll
  for (int d = 0; d < kHeadDim / 16; ++d) {
    LoadMatrixX4(q[d], rows[warp_row + lane % 16] + d * 32 + lane / 16 * 16);
  }
}

}  // namespace nibble::kernels::cuda::mma
