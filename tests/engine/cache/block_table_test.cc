// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/cache/block_table.h"

#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> Count(int64_t n, int32_t first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST(BlockTableTest, GrowsBlockByBlockAndMapsPositions) {
  BlockPool pool(4, 4, true);
  BlockTable table;
  EXPECT_EQ(table.NumMissing(pool, 5), 2);
  table.Reserve(&pool, 5);
  EXPECT_EQ(table.NumMissing(pool, 8), 0);
  EXPECT_EQ(table.NumMissing(pool, 9), 1);
  EXPECT_EQ(table.Slot(0, 4), 0);
  EXPECT_EQ(table.Slot(7, 4), 7);
  BlockTable other;
  other.Reserve(&pool, 1);
  table.Reserve(&pool, 9);
  EXPECT_THAT(table.blocks(), ElementsAre(0, 1, 3));
  EXPECT_EQ(table.Slot(8, 4), 12);
  table.Release(&pool);
  other.Release(&pool);
  EXPECT_EQ(pool.num_used(), 0);
}

TEST(BlockTableTest, OneTokenIsAlwaysLeftToCompute) {
  BlockPool pool(8, 4, true);
  BlockTable table;
  const std::vector<int32_t> tokens = Count(8);
  table.Reserve(&pool, 8);
  table.Publish(&pool, tokens, 7);
  EXPECT_EQ(table.num_published(), 1);
  table.Publish(&pool, tokens, 8);
  EXPECT_EQ(table.num_published(), 2);
  EXPECT_EQ(BlockTable::FindPrefix(pool, tokens).size(), 1U);
  EXPECT_EQ(BlockTable::FindPrefix(pool, Count(9)).size(), 2U);
  EXPECT_EQ(BlockTable::FindPrefix(pool, Count(4)).size(), 0U);
  EXPECT_EQ(BlockTable::FindPrefix(pool, Count(9, 1)).size(), 0U);
  EXPECT_EQ(BlockTable::FindPrefix(pool, {}).size(), 0U);
  table.Release(&pool);
}

TEST(BlockTableTest, AnAdoptedPrefixIsSharedAndContinued) {
  BlockPool pool(8, 2, true);
  BlockTable first;
  first.Reserve(&pool, 4);
  first.Publish(&pool, Count(4), 4);

  std::vector<int32_t> tokens = Count(4);
  tokens.insert(tokens.end(), {70, 71, 72});
  BlockTable second;
  second.Adopt(&pool, BlockTable::FindPrefix(pool, tokens));
  second.Reserve(&pool, 7);
  EXPECT_THAT(second.blocks(), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(pool.num_used(), 4);
  second.Publish(&pool, tokens, 7);
  EXPECT_EQ(second.num_published(), 3);
  first.Release(&pool);
  EXPECT_EQ(pool.num_used(), 4);
  second.Release(&pool);
  EXPECT_EQ(pool.num_used(), 0);

  // The chain's end goes first.
  for (int i = 0; i < 5; ++i) pool.Allocate();  // four never used, then block 3, never published
  EXPECT_EQ(BlockTable::FindPrefix(pool, tokens).size(), 3U);
  pool.Allocate();
  EXPECT_EQ(BlockTable::FindPrefix(pool, tokens).size(), 2U);
  pool.CheckInvariants();
}

}  // namespace
}  // namespace nibble::engine
