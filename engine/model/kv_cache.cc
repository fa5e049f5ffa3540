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

}  // namespace

int64_t KvCache::BlockBytes(const ModelConfig& config, int64_t block_size, DType dtype) {
  return config.num_layers * 2 * config.num_kv_heads * block_size * config.head_dim *
         static_cast<int64_t>(SizeOf(dtype));
}

absl::StatusOr<KvCache> KvCache::Create(const ModelConfig& config, int64_t num_blocks,
                                        int64_t block_size, DType dtype) {
  if (dtype != DType::kF32 && dtype != DType::kBf16 && dtype != DType::kF16) {
    return Unimplemented("KV cache of {}: supported are float32, bfloat16 and float16",
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
  const int64_t bytes = num_blocks * block_bytes;
  NIBBLE_RETURN_IF_ERROR(
      CheckMemory(bytes, fmt::format("the KV cache ({} blocks of {} tokens, {} bytes each)",
                                     num_blocks, block_size, block_bytes)));
  KvCache cache;
  try {
    cache.storage_ = AlignedBuffer<uint8_t>::Zeroed(static_cast<size_t>(bytes));
  } catch (const std::bad_alloc&) {
    return ResourceExhausted(
        "the KV cache ({} blocks of {} bytes) could not be allocated: {} bytes", num_blocks,
        block_bytes, bytes);
  }
  cache.num_layers_ = config.num_layers;
  cache.num_blocks_ = num_blocks;
  cache.block_size_ = block_size;
  cache.num_kv_heads_ = config.num_kv_heads;
  cache.head_dim_ = config.head_dim;
  cache.dtype_ = dtype;
  return cache;
}

kernels::KvCacheView KvCache::layer(int64_t layer_idx) {
  NIBBLE_CHECK_GE(layer_idx, 0);
  NIBBLE_CHECK_LT(layer_idx, num_layers_);
  const int64_t half_bytes =
      num_blocks_ * num_kv_heads_ * block_size_ * head_dim_ * static_cast<int64_t>(SizeOf(dtype_));
  uint8_t* const keys = storage_.data() + layer_idx * 2 * half_bytes;
  return {.keys = keys,
          .values = keys + half_bytes,
          .dtype = dtype_,
          .num_blocks = num_blocks_,
          .num_kv_heads = num_kv_heads_,
          .block_size = block_size_,
          .head_dim = head_dim_};
}

}  // namespace nibble::engine
