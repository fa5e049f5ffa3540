// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/cache/block_pool.h"

#include <algorithm>
#include <limits>

#include "absl/hash/hash.h"

#include "base/check.h"

namespace nibble::engine {

size_t BlockPool::KeyHash::operator()(const Key& key) const {
  // absl's hash is salted in each process, so clients cannot aim for collisions; equal keys are
  // compared anyway.
  return absl::HashOf(key.parent, absl::Span<const int32_t>(key.tokens.data(), key.tokens.size()));
}

bool BlockPool::KeyEqual::operator()(const Key& a, const Key& b) const {
  return a.parent == b.parent && std::ranges::equal(a.tokens, b.tokens);
}

BlockPool::BlockPool(int64_t num_blocks, int64_t block_size, bool prefix_caching)
    : block_size_(block_size),
      prefix_caching_(prefix_caching),
      index_(0, KeyHash{this}, KeyEqual{this}) {
  NIBBLE_CHECK_GT(num_blocks, 0);
  NIBBLE_CHECK_LE(num_blocks, std::numeric_limits<BlockId>::max());
  NIBBLE_CHECK_GT(block_size, 0);
  blocks_.resize(static_cast<size_t>(num_blocks));
  for (BlockId block = 0; block < num_blocks; ++block) Append(&fresh_free_, block);
}

BlockId BlockPool::Allocate() {
  NIBBLE_CHECK_GT(num_free_, 0);
  const bool fresh = fresh_free_.first != kNone;
  const BlockId block = fresh ? fresh_free_.first : cached_free_.first;
  Remove(fresh ? &fresh_free_ : &cached_free_, block);
  if (!fresh) Forget(block);
  At(block).references = 1;
  return block;
}

void BlockPool::AddReference(BlockId block) {
  if (At(block).references == 0) {
    NIBBLE_CHECK_NE(At(block).prefix, kRootPrefix);  // only Find() gives out free blocks
    Remove(&cached_free_, block);
  }
  ++At(block).references;
}

void BlockPool::Release(BlockId block) {
  NIBBLE_CHECK_GT(At(block).references, 0);
  if (--At(block).references == 0) Append(&FreeListOf(At(block)), block);
}

std::optional<CachedBlock> BlockPool::Find(PrefixId parent, std::span<const int32_t> tokens) const {
  if (!prefix_caching_) return std::nullopt;
  NIBBLE_CHECK_EQ(static_cast<int64_t>(tokens.size()), block_size_);
  const auto found = index_.find(Key{parent, tokens});
  if (found == index_.end()) return std::nullopt;
  return CachedBlock{*found, At(*found).prefix};
}

PrefixId BlockPool::Publish(BlockId block, PrefixId parent, std::span<const int32_t> tokens) {
  if (!prefix_caching_) return kRootPrefix;
  NIBBLE_CHECK_GT(At(block).references, 0);
  NIBBLE_CHECK_EQ(At(block).prefix, kRootPrefix);
  if (const auto found = Find(parent, tokens)) return found->prefix;
  Block& published = At(block);
  published.parent = parent;
  published.prefix = next_prefix_++;
  published.tokens.assign(tokens.begin(), tokens.end());
  index_.insert(block);
  return published.prefix;
}

void BlockPool::ForgetAll() {
  NIBBLE_CHECK_EQ(num_used(), 0);
  while (cached_free_.first != kNone) {
    const BlockId block = cached_free_.first;
    Remove(&cached_free_, block);
    Forget(block);
    Append(&fresh_free_, block);
  }
}

void BlockPool::Append(FreeList* list, BlockId block) {
  At(block).previous = list->last;
  At(block).next = kNone;
  (list->last == kNone ? list->first : At(list->last).next) = block;
  list->last = block;
  ++num_free_;
}

void BlockPool::Remove(FreeList* list, BlockId block) {
  const BlockId previous = At(block).previous;
  const BlockId next = At(block).next;
  (previous == kNone ? list->first : At(previous).next) = next;
  (next == kNone ? list->last : At(next).previous) = previous;
  At(block).previous = kNone;
  At(block).next = kNone;
  --num_free_;
}

void BlockPool::Forget(BlockId block) {
  index_.erase(block);
  At(block).parent = kRootPrefix;
  At(block).prefix = kRootPrefix;
  At(block).tokens.clear();
}

int64_t BlockPool::CheckFreeList(const FreeList& list, bool published) const {
  int64_t count = 0;
  BlockId previous = kNone;
  for (BlockId block = list.first; block != kNone; block = At(block).next) {
    NIBBLE_CHECK_EQ(At(block).previous, previous);  // 5
    NIBBLE_CHECK_EQ(At(block).references, 0);       // 1
    NIBBLE_CHECK_EQ(At(block).prefix != kRootPrefix, published);
    NIBBLE_CHECK_LE(++count, num_blocks());  // a cycle would never end
    previous = block;
  }
  NIBBLE_CHECK_EQ(list.last, previous);
  return count;
}

void BlockPool::CheckInvariants() const {
  const int64_t num_listed =
      CheckFreeList(fresh_free_, false) + CheckFreeList(cached_free_, true);  // 1, 5
  NIBBLE_CHECK_EQ(num_listed, num_free_);
  int64_t num_used_blocks = 0;
  int64_t num_published = 0;
  std::vector<PrefixId> prefixes;
  for (BlockId block = 0; block < num_blocks(); ++block) {
    const Block& b = At(block);
    NIBBLE_CHECK_GE(b.references, 0);
    if (b.references > 0) ++num_used_blocks;
    if (b.prefix == kRootPrefix) continue;
    ++num_published;
    prefixes.push_back(b.prefix);
    const auto found = index_.find(KeyOf(block));
    NIBBLE_CHECK(found != index_.end());  // 3
    NIBBLE_CHECK_EQ(*found, block);
    NIBBLE_CHECK_EQ(static_cast<int64_t>(b.tokens.size()), block_size_);  // 4
    NIBBLE_CHECK_LT(b.prefix, next_prefix_);
    NIBBLE_CHECK_LT(b.parent, b.prefix);
  }
  NIBBLE_CHECK_EQ(num_used_blocks + num_free_, num_blocks());  // 2
  NIBBLE_CHECK_EQ(static_cast<int64_t>(index_.size()), num_published);
  std::sort(prefixes.begin(), prefixes.end());
  NIBBLE_CHECK(std::adjacent_find(prefixes.begin(), prefixes.end()) == prefixes.end());  // 4
}

}  // namespace nibble::engine
