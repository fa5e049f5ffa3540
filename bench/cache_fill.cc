// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cache_fill.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "kernels/kv/kv_cache.h"

namespace nibble::bench {

void FillKvCache(engine::HostKvCache* cache, const CacheFill& fill, Isa isa, ThreadPool* pool) {
  constexpr int64_t kRows = 256;
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
  std::vector<float> rows(static_cast<size_t>(2 * kRows * fill.columns));
  for (float& x : rows) x = uniform(random);
  std::vector<int32_t> slots(static_cast<size_t>(kRows));
  const int64_t num_slots = cache->num_blocks() * cache->block_size();
  for (int64_t layer = 0; layer < fill.num_layers; ++layer) {
    for (int64_t first = 0; first < num_slots; first += kRows) {
      std::iota(slots.begin(), slots.end(), static_cast<int32_t>(first));
      kernels::KvAppend(cache->layer(layer),
                        {.num_tokens = std::min(kRows, num_slots - first),
                         .k = rows.data(),
                         .k_stride = fill.columns,
                         .v = rows.data() + kRows * fill.columns,
                         .v_stride = fill.columns,
                         .slot_mapping = slots.data()},
                        isa, pool);
    }
  }
}

std::optional<DType> ParseCacheDType(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16, DType::kI8}) {
    if (ToString(dtype) == name) return dtype;
  }
  return std::nullopt;
}

std::vector<int32_t> ShuffledBlocks(int64_t num_blocks) {
  std::vector<int32_t> blocks(static_cast<size_t>(num_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  std::mt19937 random(2);
  std::shuffle(blocks.begin(), blocks.end(), random);
  return blocks;
}

}  // namespace nibble::bench
