// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Keys and values of all layers in device memory (kernels/kv/cuda/kv_cache.h has the layout).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/status.h"
#include "engine/model/model.h"
#include "kernels/kv/cuda/kv_cache.h"

namespace nibble::engine {

class DeviceKvCache final : public KvCache {
 public:
  // Zeroed, on the current device. Errors as HostKvCache::Create's.
  static absl::StatusOr<std::unique_ptr<DeviceKvCache>> Create(const ModelConfig& config,
                                                               int64_t num_blocks,
                                                               int64_t block_size, DType dtype);
  ~DeviceKvCache() override;  // in any thread

  kernels::cuda::KvCacheView layer(int64_t layer_idx) const;
  int64_t num_blocks() const override { return shape_.num_blocks; }
  int64_t block_size() const override { return shape_.block_size; }
  // No other cache of this process has it: captured graphs hold a cache's addresses.
  uint64_t id() const { return id_; }

 private:
  DeviceKvCache() = default;

  std::optional<gpu::DeviceGuard> closing_;  // taken when it ends, until all below has ended
  int device_ = -1;
  kernels::cuda::KvCacheView shape_;  // of a layer, without memory
  // [num_layers, 2 (keys, values)], each part of `part_bytes_`, which keep parts aligned.
  gpu::DeviceBuffer<uint8_t> storage_;
  gpu::DeviceBuffer<float> scales_;  // [num_layers, 2, num_blocks, num_kv_heads, block_size]: int8
  int64_t num_layers_ = 0;
  int64_t part_bytes_ = 0;
  int64_t part_scales_ = 0;
  uint64_t id_ = 0;
};

}  // namespace nibble::engine
