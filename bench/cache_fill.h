// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// KV caches as a server in use has them: filled, blocks in no order.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/cpu_features.h"
#include "base/dtype.h"
#include "base/thread_pool.h"
#include "engine/model/model.h"

namespace nibble::bench {

struct CacheFill {
  int64_t num_layers = 0;
  int64_t columns = 0;  // num_kv_heads * head_dim
};

// Random keys and values everywhere: what was never written would be read from one page of zeros.
void FillKvCache(engine::HostKvCache* cache, const CacheFill& fill, Isa isa, ThreadPool* pool);

// float32, bfloat16, float16, int8; none for another name.
std::optional<DType> ParseCacheDType(std::string_view name);

// 0..num_blocks-1 in an order of no pattern; the same for every call.
std::vector<int32_t> ShuffledBlocks(int64_t num_blocks);

}  // namespace nibble::bench
