// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/cache/block_pool.h"

#include <map>
#include <utility>

#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using Tokens = std::vector<int32_t>;

TEST(BlockPoolTest, FreshBlocksAreTakenInOrderAndReused) {
  BlockPool pool(3, 2, true);
  EXPECT_EQ(pool.Allocate(), 0);
  EXPECT_EQ(pool.Allocate(), 1);
  EXPECT_EQ(pool.num_used(), 2);
  pool.Release(0);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.Allocate(), 2);
  EXPECT_EQ(pool.Allocate(), 0);
  EXPECT_EQ(pool.num_free(), 0);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, SharedBlocksAreFreedByTheLastReference) {
  BlockPool pool(2, 2, true);
  const BlockId block = pool.Allocate();
  pool.AddReference(block);
  pool.Release(block);
  EXPECT_EQ(pool.num_used(), 1);
  pool.Release(block);
  EXPECT_EQ(pool.num_used(), 0);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, ABlockIsFoundUnderItsParentAndTokensOnly) {
  BlockPool pool(4, 2, true);
  const BlockId first = pool.Allocate();
  const BlockId second = pool.Allocate();
  const PrefixId a = pool.Publish(first, kRootPrefix, Tokens{1, 2});
  const PrefixId ab = pool.Publish(second, a, Tokens{3, 4});
  EXPECT_EQ(pool.Find(kRootPrefix, Tokens{1, 2})->block, first);
  EXPECT_EQ(pool.Find(a, Tokens{3, 4})->block, second);
  EXPECT_EQ(pool.Find(a, Tokens{3, 4})->prefix, ab);
  EXPECT_FALSE(pool.Find(kRootPrefix, Tokens{3, 4}));
  EXPECT_FALSE(pool.Find(ab, Tokens{3, 4}));
  EXPECT_FALSE(pool.Find(kRootPrefix, Tokens{2, 1}));
  pool.CheckInvariants();
}

TEST(BlockPoolTest, AnEqualBlockPublishedBeforeStaysTheOne) {
  BlockPool pool(4, 1, true);
  const BlockId first = pool.Allocate();
  const BlockId twin = pool.Allocate();
  const PrefixId prefix = pool.Publish(first, kRootPrefix, Tokens{7});
  EXPECT_EQ(pool.Publish(twin, kRootPrefix, Tokens{7}), prefix);
  EXPECT_EQ(pool.Find(kRootPrefix, Tokens{7})->block, first);
  pool.Release(twin);  // not cached: the next to be taken after the fresh ones
  pool.Release(first);
  pool.CheckInvariants();
  EXPECT_EQ(pool.Allocate(), 2);
  EXPECT_EQ(pool.Allocate(), 3);
  EXPECT_EQ(pool.Allocate(), twin);
  EXPECT_TRUE(pool.Find(kRootPrefix, Tokens{7}));
}

TEST(BlockPoolTest, CachedBlocksAreEvictedLeastRecentlyFreedFirst) {
  BlockPool pool(3, 1, true);
  for (int32_t token = 0; token < 3; ++token) {
    pool.Publish(pool.Allocate(), kRootPrefix, Tokens{token});
  }
  for (const BlockId block : {1, 0, 2}) pool.Release(block);
  // Touched again: now the most recent.
  pool.AddReference(1);
  pool.Release(1);
  EXPECT_EQ(pool.Allocate(), 0);
  EXPECT_FALSE(pool.Find(kRootPrefix, Tokens{0}));
  EXPECT_EQ(pool.Allocate(), 2);
  EXPECT_TRUE(pool.Find(kRootPrefix, Tokens{1}));
  EXPECT_EQ(pool.Allocate(), 1);
  EXPECT_FALSE(pool.Find(kRootPrefix, Tokens{1}));
  pool.CheckInvariants();
}

TEST(BlockPoolTest, AChildOfAnEvictedParentIsNeverFoundUnderAnotherParent) {
  BlockPool pool(2, 1, true);
  const BlockId parent = pool.Allocate();
  const BlockId child = pool.Allocate();
  const PrefixId old_prefix = pool.Publish(parent, kRootPrefix, Tokens{1});
  pool.Publish(child, old_prefix, Tokens{2});
  pool.Release(parent);
  const BlockId other = pool.Allocate();  // evicts the parent
  EXPECT_EQ(other, parent);
  const PrefixId new_prefix = pool.Publish(other, kRootPrefix, Tokens{9});
  EXPECT_NE(new_prefix, old_prefix);
  EXPECT_FALSE(pool.Find(new_prefix, Tokens{2}));
  pool.CheckInvariants();
}

TEST(BlockPoolTest, WhatIsForgottenIsNotFoundAndAllBlocksAreFree) {
  BlockPool pool(3, 1, true);
  const BlockId first = pool.Allocate();
  const PrefixId prefix = pool.Publish(first, kRootPrefix, Tokens{1});
  const BlockId second = pool.Allocate();
  pool.Publish(second, prefix, Tokens{2});
  pool.Release(second);
  pool.Release(first);
  ASSERT_TRUE(pool.Find(kRootPrefix, Tokens{1}));
  pool.ForgetAll();
  pool.CheckInvariants();
  EXPECT_FALSE(pool.Find(kRootPrefix, Tokens{1}));
  EXPECT_FALSE(pool.Find(prefix, Tokens{2}));
  EXPECT_EQ(pool.num_free(), 3);
  for (int i = 0; i < 3; ++i) pool.Allocate();
  EXPECT_EQ(pool.num_free(), 0);
  pool.CheckInvariants();
}

TEST(BlockPoolTest, WithoutPrefixCachingNothingIsFound) {
  BlockPool pool(2, 1, false);
  const BlockId block = pool.Allocate();
  EXPECT_EQ(pool.Publish(block, kRootPrefix, Tokens{1}), kRootPrefix);
  EXPECT_FALSE(pool.Find(kRootPrefix, Tokens{1}));
  pool.Release(block);
  pool.CheckInvariants();
}

// Random operations against a model: chains as whole token lists. What Find() returns must be what
// was published under exactly that chain.
TEST(BlockPoolTest, RandomOperationsKeepTheInvariants) {
  testing::Random random(7);
  for (int round = 0; round < 20; ++round) {
    const int64_t block_size = random.Int(1, 3);
    BlockPool pool(random.Int(1, 12), block_size, true);
    std::vector<BlockId> held;                                // one entry per reference
    std::map<BlockId, std::pair<PrefixId, Tokens>> chain_of;  // of published blocks
    std::map<PrefixId, Tokens> chains = {{kRootPrefix, {}}};
    for (int step = 0; step < 400; ++step) {
      const int64_t operation = random.Int(0, 3);
      if (operation == 0 && pool.num_free() > 0) {
        held.push_back(pool.Allocate());
        chain_of.erase(held.back());
      } else if (operation == 1 && !held.empty()) {
        const auto index = static_cast<size_t>(random.Int(0, int64_t(held.size()) - 1));
        pool.Release(held[index]);
        held.erase(held.begin() + static_cast<int64_t>(index));
      } else {
        auto parent = chains.begin();
        std::advance(parent, random.Int(0, int64_t(chains.size()) - 1));
        Tokens tokens;
        for (int64_t i = 0; i < block_size; ++i) tokens.push_back(int32_t(random.Int(0, 1)));
        Tokens whole = parent->second;
        whole.insert(whole.end(), tokens.begin(), tokens.end());
        const auto found = pool.Find(parent->first, tokens);
        if (found) {
          ASSERT_TRUE(chain_of.contains(found->block));
          ASSERT_EQ(chain_of[found->block], std::make_pair(found->prefix, whole));
          pool.AddReference(found->block);
          held.push_back(found->block);
        } else if (operation == 3 && !held.empty() && !chain_of.contains(held.back())) {
          const PrefixId prefix = pool.Publish(held.back(), parent->first, tokens);
          ASSERT_FALSE(chains.contains(prefix));
          chains[prefix] = whole;
          chain_of[held.back()] = {prefix, whole};
        }
      }
      pool.CheckInvariants();
    }
    for (const BlockId block : held) pool.Release(block);
    EXPECT_EQ(pool.num_used(), 0);
    pool.CheckInvariants();
  }
}

}  // namespace
}  // namespace nibble::engine
