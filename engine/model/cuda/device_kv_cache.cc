// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/cuda/device_kv_cache.h"

#include <atomic>
#include <utility>

#include "base/check.h"
#include "base/cuda/error.h"
#include "base/cuda/stream.h"

namespace nibble::engine {
namespace {

constexpr int64_t kAlignment = 256;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceKvCache>> DeviceKvCache::Create(const ModelConfig& config,
                                                                     int64_t num_blocks,
                                                                     int64_t block_size,
                                                                     DType dtype) {
  static std::atomic<uint64_t> next_id{1};
  NIBBLE_RETURN_IF_ERROR(CheckSize(config, num_blocks, block_size, dtype).status());
  std::unique_ptr<DeviceKvCache> cache(new DeviceKvCache);
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaGetDevice(&cache->device_));
  cache->shape_ = {.dtype = dtype,
                   .num_blocks = num_blocks,
                   .num_kv_heads = config.num_kv_heads,
                   .block_size = block_size,
                   .head_dim = config.head_dim};
  cache->num_layers_ = config.num_layers;
  const int64_t rows = num_blocks * config.num_kv_heads * block_size;
  const int64_t num_parts = 2 * config.num_layers;
  cache->part_bytes_ = Aligned(rows * config.head_dim * static_cast<int64_t>(SizeOf(dtype)));
  cache->part_scales_ = dtype == DType::kI8 ? rows : 0;
  NIBBLE_ASSIGN_OR_RETURN(
      cache->storage_,
      gpu::DeviceBuffer<uint8_t>::Create(static_cast<size_t>(num_parts * cache->part_bytes_)));
  NIBBLE_ASSIGN_OR_RETURN(
      cache->scales_,
      gpu::DeviceBuffer<float>::Create(static_cast<size_t>(num_parts * cache->part_scales_)));
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
  NIBBLE_RETURN_IF_ERROR(
      gpu::ZeroDevice(cache->storage_.data(), cache->storage_.size_bytes(), stream.get()));
  NIBBLE_RETURN_IF_ERROR(
      gpu::ZeroDevice(cache->scales_.data(), cache->scales_.size_bytes(), stream.get()));
  NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
  cache->id_ = next_id.fetch_add(1);
  return cache;
}

DeviceKvCache::~DeviceKvCache() {
  auto guard = gpu::DeviceGuard::Create(device_);
  if (guard.ok()) closing_.emplace(*std::move(guard));
}

kernels::cuda::KvCacheView DeviceKvCache::layer(int64_t layer_idx) const {
  NIBBLE_CHECK_GE(layer_idx, 0);
  NIBBLE_CHECK_LT(layer_idx, num_layers_);
  kernels::cuda::KvCacheView view = shape_;
  uint8_t* const keys = storage_.data() + 2 * layer_idx * part_bytes_;
  view.keys = keys;
  view.values = keys + part_bytes_;
  if (part_scales_ > 0) {
    view.key_scales = scales_.data() + 2 * layer_idx * part_scales_;
    view.value_scales = view.key_scales + part_scales_;
  }
  return view;
}

}  // namespace nibble::engine
