// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Who holds which KV block. Pure bookkeeping: the keys and values themselves live in the executor.
//
// A block is *used* while sequences hold references to it. A full block whose tokens are computed
// can be published to the prefix cache; when its last reference goes it stays findable until it is
// evicted, least recently freed first, to make room. Blocks without cached content are taken first.
//
// Prefix cache. A published block stands for a chain: its key is its parent's prefix id and its own
// token ids, and both are compared, not only hashed, so that a hit is exact whatever a client
// sends. Prefix ids are never reused: a block published under a parent that was evicted since
// cannot be found any more and goes the way of every free block.
//
// Invariants (CheckInvariants):
//   1. Every block is in exactly one place: used (references > 0), the fresh free list (references
//      0, not published) or the cached free list (references 0, published).
//   2. num_used() + num_free() == num_blocks().
//   3. A block is in the index if and only if it is published, and no two published blocks have the
//      same key.
//   4. A published block holds block_size token ids; its prefix id is unique, not kRootPrefix, and
//      newer than its parent's.
//   5. The free lists are linked the same way forwards and backwards.
//
// Deterministic: the same calls give the same blocks. Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_set.h"

namespace nibble::engine {

using BlockId = int32_t;
using PrefixId = uint64_t;

inline constexpr PrefixId kRootPrefix = 0;  // the empty prefix, parent of first blocks

struct CachedBlock {
  BlockId block = 0;
  PrefixId prefix = kRootPrefix;
};

class BlockPool {
 public:
  // REQUIRES 0 < num_blocks < 2^31, block_size > 0. Without `prefix_caching` Publish and Find do
  // nothing.
  BlockPool(int64_t num_blocks, int64_t block_size, bool prefix_caching);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t block_size() const { return block_size_; }
  int64_t num_free() const { return num_free_; }  // cached ones included
  int64_t num_used() const { return num_blocks() - num_free_; }

  // Takes a free block with one reference; its cached content, if any, is forgotten. REQUIRES
  // num_free() > 0.
  BlockId Allocate();
  // One more reference to a block that is used or was just found; takes it off the free list.
  void AddReference(BlockId block);
  // One reference less. A sequence releases its blocks last to first, so that a chain is evicted
  // from its end.
  void Release(BlockId block);

  // The block that continues `parent` with exactly these tokens, if it is cached. REQUIRES
  // tokens.size() == block_size.
  std::optional<CachedBlock> Find(PrefixId parent, std::span<const int32_t> tokens) const;
  // Makes a used block findable under its key; returns the prefix id of whatever block stands for
  // that key now (an equal block that was published before stays the one).
  PrefixId Publish(BlockId block, PrefixId parent, std::span<const int32_t> tokens);
  bool IsFree(BlockId block) const { return At(block).references == 0; }
  // Nothing is found any more: what the blocks held is lost. REQUIRES num_used() == 0.
  void ForgetAll();

  // Aborts when an invariant does not hold. O(num_blocks * block_size): for tests.
  void CheckInvariants() const;

 private:
  static constexpr BlockId kNone = -1;

  struct Block {
    int32_t references = 0;
    BlockId previous = kNone;  // in a free list
    BlockId next = kNone;
    PrefixId parent = kRootPrefix;
    PrefixId prefix = kRootPrefix;  // kRootPrefix: not published
    std::vector<int32_t> tokens;    // of a published block
  };
  struct FreeList {
    BlockId first = kNone;
    BlockId last = kNone;
  };
  struct Key {
    PrefixId parent;
    std::span<const int32_t> tokens;
  };
  struct KeyHash {
    using is_transparent = void;
    const BlockPool* pool;
    size_t operator()(const Key& key) const;
    size_t operator()(BlockId block) const { return (*this)(pool->KeyOf(block)); }
  };
  struct KeyEqual {
    using is_transparent = void;
    const BlockPool* pool;
    bool operator()(const Key& a, const Key& b) const;
    bool operator()(BlockId a, const Key& b) const { return (*this)(pool->KeyOf(a), b); }
    bool operator()(const Key& a, BlockId b) const { return (*this)(a, pool->KeyOf(b)); }
    bool operator()(BlockId a, BlockId b) const { return (*this)(pool->KeyOf(a), pool->KeyOf(b)); }
  };

  const Block& At(BlockId block) const { return blocks_[static_cast<size_t>(block)]; }
  Block& At(BlockId block) { return blocks_[static_cast<size_t>(block)]; }
  Key KeyOf(BlockId block) const { return {At(block).parent, At(block).tokens}; }
  FreeList& FreeListOf(const Block& block) {
    return block.prefix == kRootPrefix ? fresh_free_ : cached_free_;
  }
  void Append(FreeList* list, BlockId block);
  void Remove(FreeList* list, BlockId block);
  void Forget(BlockId block);
  int64_t CheckFreeList(const FreeList& list, bool published) const;

  int64_t block_size_;
  bool prefix_caching_;
  std::vector<Block> blocks_;
  FreeList fresh_free_;
  FreeList cached_free_;  // least recently freed first
  int64_t num_free_ = 0;
  PrefixId next_prefix_ = kRootPrefix + 1;
  absl::flat_hash_set<BlockId, KeyHash, KeyEqual> index_;  // published blocks
};

}  // namespace nibble::engine
