// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/permute.h"

#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::Random;
using ::testing::Each;
using ::testing::ElementsAre;

constexpr int32_t kCanary = -1234;

struct Permutation {
  std::vector<int32_t> offsets;
  std::vector<int32_t> token_of_row;
  std::vector<int32_t> row_of;
};

// Outputs that are not to be written keep kCanary.
Permutation PermuteIds(const std::vector<int32_t>& slot_ids, int64_t k, int32_t first_slot,
                       int32_t num_slots) {
  Permutation result{std::vector<int32_t>(static_cast<size_t>(num_slots) + 2, kCanary),
                     std::vector<int32_t>(slot_ids.size() + 1, kCanary),
                     std::vector<int32_t>(slot_ids.size() + 1, kCanary)};
  Permute({.num_tokens = static_cast<int64_t>(slot_ids.size()) / k,
           .num_experts_per_tok = k,
           .slot_ids = slot_ids.data(),
           .first_slot = first_slot,
           .num_slots = num_slots,
           .offsets = result.offsets.data(),
           .token_of_row = result.token_of_row.data(),
           .row_of = result.row_of.data()});
  EXPECT_EQ(result.offsets.back(), kCanary) << "offsets written past the end";
  EXPECT_EQ(result.row_of.back(), kCanary) << "row_of written past the end";
  result.offsets.pop_back();
  result.row_of.pop_back();
  for (size_t row = static_cast<size_t>(result.offsets.back()); row < result.token_of_row.size();
       ++row) {
    EXPECT_EQ(result.token_of_row[row], kCanary) << "row " << row << " of none was written";
  }
  result.token_of_row.resize(static_cast<size_t>(result.offsets.back()));
  return result;
}

// A slot's rows are its ids in the order in which tokens have them: what the header says, by
// looking for each.
Permutation Expected(const std::vector<int32_t>& slot_ids, int64_t k, int32_t first_slot,
                     int32_t num_slots) {
  Permutation expected{{0}, {}, std::vector<int32_t>(slot_ids.size(), -1)};
  for (int32_t s = first_slot; s < first_slot + num_slots; ++s) {
    for (size_t i = 0; i < slot_ids.size(); ++i) {
      if (slot_ids[i] != s) continue;
      expected.row_of[i] = static_cast<int32_t>(expected.token_of_row.size());
      expected.token_of_row.push_back(static_cast<int32_t>(static_cast<int64_t>(i) / k));
    }
    expected.offsets.push_back(static_cast<int32_t>(expected.token_of_row.size()));
  }
  return expected;
}

void ExpectSame(const Permutation& actual, const Permutation& expected) {
  EXPECT_EQ(actual.offsets, expected.offsets);
  EXPECT_EQ(actual.token_of_row, expected.token_of_row);
  EXPECT_EQ(actual.row_of, expected.row_of);
}

TEST(PermuteTest, IsAStablePartition) {
  Random random(1);
  for (const int64_t num_tokens : {1, 2, 3, 17, 130}) {
    for (const int64_t k : {1, 2, 6, 8}) {
      for (const int32_t all_slots : {1, 8, 60, 131}) {
        std::vector<int32_t> ids(static_cast<size_t>(num_tokens * k));
        for (int32_t& id : ids) id = static_cast<int32_t>(random.Int(0, all_slots - 1));
        for (const int32_t ranks : {1, 2, 3}) {
          int32_t rows = 0;
          for (int32_t r = 0; r < ranks; ++r) {
            const int32_t first = r * all_slots / ranks;
            const int32_t count = (r + 1) * all_slots / ranks - first;
            const Permutation permutation = PermuteIds(ids, k, first, count);
            ExpectSame(permutation, Expected(ids, k, first, count));
            rows += permutation.offsets.back();
          }
          EXPECT_EQ(rows, num_tokens * k) << "an id is with no rank, or with two";
        }
      }
    }
  }
}

TEST(PermuteTest, AllTokensToOneExpert) {
  const Permutation permutation = PermuteIds({5, 5, 5, 5}, 1, 4, 4);
  EXPECT_THAT(permutation.offsets, ElementsAre(0, 0, 4, 4, 4));
  EXPECT_THAT(permutation.token_of_row, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(permutation.row_of, ElementsAre(0, 1, 2, 3));
}

TEST(PermuteTest, RanksWithoutTokensAndWithoutSlots) {
  const std::vector<int32_t> ids = {5, 0, 4, 7};
  Permutation permutation = PermuteIds(ids, 2, 1, 3);
  EXPECT_THAT(permutation.offsets, ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(permutation.row_of, Each(-1));
  permutation = PermuteIds(ids, 2, 4, 0);
  EXPECT_THAT(permutation.offsets, ElementsAre(0));
  EXPECT_THAT(permutation.row_of, Each(-1));
}

TEST(PermuteTest, NoTokens) { EXPECT_THAT(PermuteIds({}, 8, 16, 2).offsets, ElementsAre(0, 0, 0)); }

TEST(PermuteTest, IdsOfNoSlotAreNobodys) {
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  const Permutation permutation = PermuteIds({-1, kMin, kMax, 3, 2}, 1, 2, 2);
  EXPECT_THAT(permutation.row_of, ElementsAre(-1, -1, -1, 1, 0));
}

}  // namespace
}  // namespace nibble::kernels
