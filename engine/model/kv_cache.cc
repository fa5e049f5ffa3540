// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <limits>
#include <new>

#include "base/check.h"
#include "engine/model/memory.h"
#include "engine/model/model.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxBlockSize = 4096;

// One layer's cache of some blocks, without memory.
kernels::KvCacheView Shape(const ModelConfig& config, int64_t num_blocks, int64_t block_size,
                           DType dtype) {
  return {.dtype = dtype,
          .num_blocks = num_blocks,
          .num_kv_heads = config.num_kv_heads,
          .block_size = block_size,
          .head_dim = config.head_dim};
}

bool HasScales(DType dtype) { return dtype == DType::kI8; }

}  // namespace

int64_t KvCache::BlockBytes(const ModelConfig& config, int64_t block_size, DType dtype) {
  const kernels::KvCacheView block = Shape(config, 1, block_size, dtype);
  const int64_t scale_bytes =
      HasScales(dtype) ? block.num_rows() * static_cast<int64_t>(sizeof(float)) : 0;
  return config.num_layers * 2 * (block.num_bytes() + scale_bytes);
}

absl::StatusOr<int64_t> KvCache::CheckSize(const ModelConfig& config, int64_t num_blocks,
                                           int64_t block_size, DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kBf16 && dtype != DType::kF16 &&
      dtype != DType::kI8) {
    return Unimplemented("KV cache of {}: supported are float32, bfloat16, float16 and int8",
                         ToString(dtype));
  }
  if (block_size < 1 || block_size > kMaxBlockSize) {
    return InvalidArgument("KV block size is {}, the limits are 1 and {}", block_size,
                           kMaxBlockSize);
  }
  // A slot is an int32.
  const int64_t max_blocks = std::numeric_limits<int32_t>::max() / block_size;
  if (num_blocks < 1 || num_blocks > max_blocks) {
    return InvalidArgument("{} KV blocks of {} tokens asked for, the limits are 1 and {}",
                           num_blocks, block_size, max_blocks);
  }
  const int64_t block_bytes = BlockBytes(config, block_size, dtype);
  if (num_blocks > std::numeric_limits<int64_t>::max() / block_bytes) {
    return ResourceExhausted("KV cache of {} blocks of {} bytes does not fit an address space",
                             num_blocks, block_bytes);
  }
  return num_blocks * block_bytes;
}

absl::StatusOr<HostKvCache> HostKvCache::Create(const ModelConfig& config, int64_t num_blocks,
                                                int64_t block_size, DType dtype) {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t bytes, CheckSize(config, num_blocks, block_size, dtype));
  const int64_t block_bytes = bytes / num_blocks;
  NIBBLE_RETURN_IF_ERROR(
      CheckMemory(bytes, fmt::format("the KV cache ({} blocks of {} tokens, {} bytes each)",
                                     num_blocks, block_size, block_bytes)));
  HostKvCache cache;
  cache.shape_ = Shape(config, num_blocks, block_size, dtype);
  cache.num_layers_ = config.num_layers;
  const int64_t num_halves = 2 * config.num_layers;
  try {
    cache.storage_ =
        AlignedBuffer<uint8_t>::Zeroed(static_cast<size_t>(num_halves * cache.shape_.num_bytes()));
    if (HasScales(dtype)) {
      cache.scales_ =
          AlignedBuffer<float>::Zeroed(static_cast<size_t>(num_halves * cache.shape_.num_rows()));
    }
  } catch (const std::bad_alloc&) {
    return ResourceExhausted(
        "the KV cache ({} blocks of {} bytes) could not be allocated: {} bytes", num_blocks,
        block_bytes, bytes);
  }
  return cache;
}

kernels::KvCacheView HostKvCache::layer(int64_t layer_idx) {
  NIBBLE_CHECK_GE(layer_idx, 0);
  NIBBLE_CHECK_LT(layer_idx, num_layers_);
  kernels::KvCacheView view = shape_;
  uint8_t* const keys = storage_.data() + layer_idx * 2 * view.num_bytes();
  view.keys = keys;
  view.values = keys + view.num_bytes();
  if (HasScales(view.dtype)) {
    view.key_scales = scales_.data() + layer_idx * 2 * view.num_rows();
    view.value_scales = view.key_scales + view.num_rows();
  }
  return view;
}

}  // namespace nibble::engine
