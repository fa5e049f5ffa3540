// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The KV blocks of one sequence, in order: position p lives in block p / block_size at offset
// p % block_size. Holds one reference to each of its blocks; the owner calls Release() before the
// table goes.
//
// Invariants:
//   1. Every block of the table is used in the pool.
//   2. The first num_published() blocks are full and computed; their contents are published, or an
//      equal block was before them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cache/block_pool.h"

namespace nibble::engine {

class BlockTable {
 public:
  BlockTable() = default;
  BlockTable(BlockTable&&) = default;
  BlockTable& operator=(BlockTable&&) = default;

  // What the prefix cache knows of a sequence that begins with `tokens`, at most
  // (tokens.size() - 1) / block_size blocks: one token is always left to compute, for its logits.
  static std::vector<CachedBlock> FindPrefix(const BlockPool& pool,
                                             std::span<const int32_t> tokens);

  // Starts an empty table with blocks that FindPrefix just gave.
  void Adopt(BlockPool* pool, std::span<const CachedBlock> prefix);
  // Blocks that Reserve(num_tokens) would take.
  int64_t NumMissing(const BlockPool& pool, int64_t num_tokens) const;
  // Grows the table to hold `num_tokens`. REQUIRES NumMissing() free blocks.
  void Reserve(BlockPool* pool, int64_t num_tokens);
  // Publishes the blocks that became full: `tokens` of which the first `num_computed` are computed.
  void Publish(BlockPool* pool, std::span<const int32_t> tokens, int64_t num_computed);
  // Gives all blocks back.
  void Release(BlockPool* pool);

  std::span<const BlockId> blocks() const { return blocks_; }
  int64_t num_published() const { return num_published_; }
  int64_t Slot(int64_t position, int64_t block_size) const {
    return int64_t{blocks_[static_cast<size_t>(position / block_size)]} * block_size +
           position % block_size;
  }

 private:
  std::vector<BlockId> blocks_;
  int64_t num_published_ = 0;
  PrefixId last_prefix_ = kRootPrefix;  // of block num_published_ - 1
};

}  // namespace nibble::engine
