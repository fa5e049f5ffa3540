// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/cache/block_table.h"

#include <algorithm>

#include "base/check.h"

namespace nibble::engine {
namespace {

std::span<const int32_t> TokensOfBlock(std::span<const int32_t> tokens, int64_t block_idx,
                                       int64_t block_size) {
  return tokens.subspan(static_cast<size_t>(block_idx * block_size),
                        static_cast<size_t>(block_size));
}

}  // namespace

std::vector<CachedBlock> BlockTable::FindPrefix(const BlockPool& pool,
                                                std::span<const int32_t> tokens) {
  std::vector<CachedBlock> prefix;
  if (tokens.empty()) return prefix;
  const int64_t max_blocks = (static_cast<int64_t>(tokens.size()) - 1) / pool.block_size();
  PrefixId parent = kRootPrefix;
  for (int64_t i = 0; i < max_blocks; ++i) {
    const auto found = pool.Find(parent, TokensOfBlock(tokens, i, pool.block_size()));
    if (!found) break;
    prefix.push_back(*found);
    parent = found->prefix;
  }
  return prefix;
}

void BlockTable::Adopt(BlockPool* pool, std::span<const CachedBlock> prefix) {
  NIBBLE_CHECK(blocks_.empty());
  for (const CachedBlock& cached : prefix) {
    pool->AddReference(cached.block);
    blocks_.push_back(cached.block);
    last_prefix_ = cached.prefix;
  }
  num_published_ = static_cast<int64_t>(blocks_.size());
}

int64_t BlockTable::NumMissing(const BlockPool& pool, int64_t num_tokens) const {
  const int64_t num_needed = (num_tokens + pool.block_size() - 1) / pool.block_size();
  return std::max<int64_t>(0, num_needed - static_cast<int64_t>(blocks_.size()));
}

void BlockTable::Reserve(BlockPool* pool, int64_t num_tokens) {
  for (int64_t missing = NumMissing(*pool, num_tokens); missing > 0; --missing) {
    blocks_.push_back(pool->Allocate());
  }
}

void BlockTable::Publish(BlockPool* pool, std::span<const int32_t> tokens, int64_t num_computed) {
  const int64_t num_full = num_computed / pool->block_size();
  for (; num_published_ < num_full; ++num_published_) {
    last_prefix_ = pool->Publish(blocks_[static_cast<size_t>(num_published_)], last_prefix_,
                                 TokensOfBlock(tokens, num_published_, pool->block_size()));
  }
}

void BlockTable::Release(BlockPool* pool) {
  for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) pool->Release(*block);
  blocks_.clear();
  num_published_ = 0;
  last_prefix_ = kRootPrefix;
}

}  // namespace nibble::engine
