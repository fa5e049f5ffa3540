// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/kv/cuda/kv_cache.h"
#include "kernels/quant/cuda/row_plan.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int64_t kMaxHeadDim = 256;
constexpr int kThreads = 128;

// Reductions over the `kLanes` threads that have a head. The lanes beyond its end bring zeros.
template <int kLanes>
__device__ __forceinline__ float HeadSum(float value) {
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(gpu::kFullMask, value, bits);
  }
  return value;
}
template <int kLanes>
__device__ __forceinline__ int HeadMax(int value) {
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) {
    value = max(value, __shfl_xor_sync(gpu::kFullMask, value, bits));
  }
  return value;
}

// 1 / sqrt(mean(x^2) + epsilon) of a head.
template <int kLanes>
__device__ __forceinline__ float InverseNorm(const Float8& x, int head_dim, float epsilon) {
  float squares = 0.0F;
#pragma unroll
  for (int e = 0; e < kElements; ++e) squares = fmaf(x.v[e], x.v[e], squares);
  return 1.0F / sqrtf(HeadSum<kLanes>(squares) / static_cast<float>(head_dim) + epsilon);
}

// Elements column .. column + 7 of the head, rotated (kernels/rope/rope_head.h). cos and sin are
// those of the position.
__device__ __forceinline__ Float8 Rotate(const float* head, const float* cos, const float* sin,
                                         int half, int column) {
  Float8 y;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int i = column + e;
    if (i < half) {
      y.v[e] = head[i] * cos[i] - head[i + half] * sin[i];
    } else if (i < 2 * half) {
      y.v[e] = head[i] * cos[i - half] + head[i - half] * sin[i - half];
    } else {
      y.v[e] = head[i];
    }
  }
  return y;
}
// The same where no 8 elements are on both sides of the middle: vectors all along.
__device__ __forceinline__ Float8 RotateAligned(const float* head, const float* cos,
                                                const float* sin, int half, int column) {
  Float8 x = Load8(head + column);
  if (column >= 2 * half) return x;
  const bool first = column < half;
  const int angle = first ? column : column - half;
  const Float8 other = Load8(head + (first ? column + half : angle));
  const Float8 c = Load8(cos + angle);
  const Float8 s = Load8(sin + angle);
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const float product = other.v[e] * s.v[e];
    x.v[e] = first ? x.v[e] * c.v[e] - product : x.v[e] * c.v[e] + product;
  }
  return x;
}

// To row `row` of keys or values, [.., head_dim] each, by the threads that have something to store.
template <int kLanes>
__device__ __forceinline__ void StoreHead(const KvCacheView& cache, void* data, float* scales,
                                          int64_t row, int column, bool stores, const Float8& x) {
  const int64_t element = row * cache.head_dim + column;
  if (cache.dtype != DType::kI8) {
    if (stores) Store8({.data = data, .dtype = cache.dtype}, element, x);
    return;
  }
  const RowScale scale = MakeRowScale(HeadMax<kLanes>(MagnitudeBits(x)));
  if (!stores) return;
  QuantizeTo(static_cast<int8_t*>(data) + element, x, scale);
  if (column == 0) scales[row] = scale.scale;
}

// kLanes threads have one head of one token, 8 elements each.
template <int kLanes>
__global__ __launch_bounds__(kThreads) void RopeKvAppendKernel(KvCacheView cache,
                                                               RopeKvAppendArgs args) {
  const int head_dim = static_cast<int>(cache.head_dim);
  const int column = static_cast<int>(threadIdx.x % kLanes) * kElements;
  const int group = static_cast<int>(threadIdx.x / kLanes);
  const bool inside = column < head_dim;
  const int64_t heads_per_token = args.num_heads + 2 * cache.num_kv_heads;
  const int64_t index = int64_t{blockIdx.x} * (kThreads / kLanes) + group;
  // Threads without a head go along: reductions are of whole warps.
  const bool exists = index < args.num_tokens * heads_per_token;
  const int64_t token = exists ? index / heads_per_token : 0;
  const int64_t head = exists ? index % heads_per_token : 0;
  const int64_t kv_head = head - args.num_heads;  // < 0: a query
  const bool is_value = kv_head >= cache.num_kv_heads;

  const int64_t element = token * args.qkv.stride + head * head_dim + column;
  Float8 x = {};
  if (inside) x = Load8(args.qkv, element);
  if (args.q_norm != nullptr || args.k_norm != nullptr) {
    const float inverse = InverseNorm<kLanes>(x, head_dim, args.epsilon);
    const float* const weight = kv_head < 0 ? args.q_norm : is_value ? nullptr : args.k_norm;
    if (inside && weight != nullptr) {
      const Float8 w = Load8(weight + column);
#pragma unroll
      for (int e = 0; e < kElements; ++e) x.v[e] = x.v[e] * inverse * w.v[e];
    }
  }

  float* const staged = gpu::SharedAs<float>() + group * head_dim;
  if (inside) Store8(staged + column, x);
  __syncwarp();
  if (inside && !is_value) {
    const int half = static_cast<int>(args.rotary_dim / 2);
    const int64_t angles = int64_t{max(args.positions[token], 0)} * half;
    x = half % kElements == 0
            ? RotateAligned(staged, args.cos + angles, args.sin + angles, half, column)
            : Rotate(staged, args.cos + angles, args.sin + angles, half, column);
  }

  if (exists && inside && kv_head < 0) Store8(args.qkv, element, x);
  const int64_t slot = args.slot_mapping[token];
  const bool has_slot = slot >= 0 && slot < cache.num_blocks * cache.block_size;
  const int64_t stored_head = is_value ? kv_head - cache.num_kv_heads : kv_head;
  const int64_t block_head = slot / cache.block_size * cache.num_kv_heads + stored_head;
  StoreHead<kLanes>(cache, is_value ? cache.values : cache.keys,
                    is_value ? cache.value_scales : cache.key_scales,
                    block_head * cache.block_size + slot % cache.block_size, column,
                    exists && inside && kv_head >= 0 && has_slot, x);
}

template <int kLanes>
absl::Status LaunchFor(const KvCacheView& cache, const RopeKvAppendArgs& args,
                       cudaStream_t stream) {
  constexpr int64_t kHeadsPerBlock = kThreads / kLanes;
  const int64_t heads = args.num_heads + 2 * cache.num_kv_heads;
  NIBBLE_RETURN_IF_ERROR(CheckGrid(args.num_tokens, heads));
  const int64_t blocks = (args.num_tokens * heads + kHeadsPerBlock - 1) / kHeadsPerBlock;
  return gpu::Launch(
      RopeKvAppendKernel<kLanes>,
      {.grid = {static_cast<unsigned>(blocks)},
       .block = {kThreads},
       .shared_bytes = static_cast<size_t>(kHeadsPerBlock * cache.head_dim) * sizeof(float),
       .stream = stream},
      cache, args);
}

absl::Status CheckCache(const KvCacheView& cache) {
  if (cache.dtype != DType::kF32 && cache.dtype != DType::kBf16 && cache.dtype != DType::kI8) {
    return InvalidArgument("the cache's type is {}, wanted is float32, bfloat16 or int8",
                           TypeName(cache.dtype));
  }
  const bool has_scales = cache.key_scales != nullptr && cache.value_scales != nullptr;
  if (cache.dtype == DType::kI8 && !has_scales) {
    return InvalidArgument("the cache is int8 and has no scales");
  }
  if (cache.num_blocks < 0 || cache.num_kv_heads < 1 || cache.block_size < 1) {
    return InvalidArgument("the cache has {} blocks of {} heads and {} positions", cache.num_blocks,
                           cache.num_kv_heads, cache.block_size);
  }
  return CheckColumns("head_dim", cache.head_dim, kMaxHeadDim);
}

}  // namespace

absl::Status RopeKvAppend(const KvCacheView& cache, const RopeKvAppendArgs& args,
                          cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckCache(cache));
  if (args.num_heads < 0) return InvalidArgument("there are {} query heads", args.num_heads);
  if (args.rotary_dim < 0 || args.rotary_dim % 2 != 0 || args.rotary_dim > cache.head_dim) {
    return InvalidArgument("rotary_dim is {}, wanted is an even number up to head_dim, {}",
                           args.rotary_dim, cache.head_dim);
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix("qkv", args.qkv, args.num_tokens,
                                     (args.num_heads + 2 * cache.num_kv_heads) * cache.head_dim));
  if (cache.head_dim <= 64) return LaunchFor<8>(cache, args, stream);
  if (cache.head_dim <= 128) return LaunchFor<16>(cache, args, stream);
  return LaunchFor<32>(cache, args, stream);
}

}  // namespace nibble::kernels::cuda
