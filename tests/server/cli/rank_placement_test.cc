// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/rank_placement.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const HostCpus kSeven{.cpus = {0, 1, 2, 3, 8, 9, 10}, .num_threads = 7};

server::ModelOptions Binding(const std::string& cpu_binding) {
  server::ModelOptions model;
  model.cpu_binding = cpu_binding;
  return model;
}

TEST(RankPlacementTest, EachRankHasCpusOfItsOwn) {
  const auto placement = PlaceRanks(Binding("auto"), 0, 3, kSeven);
  ASSERT_EQ(placement->ranks.size(), 3U);
  EXPECT_THAT(placement->ranks[0].cpus, ElementsAre(0, 1));
  EXPECT_THAT(placement->ranks[1].cpus, ElementsAre(2, 3));
  EXPECT_THAT(placement->ranks[2].cpus, ElementsAre(8, 9));
  EXPECT_EQ(placement->ranks[2].threads, 2);
  EXPECT_THAT(placement->warning, IsEmpty());
}

TEST(RankPlacementTest, MoreRanksThanCpusAreNotBoundAndWarnedOf) {
  const auto placement = PlaceRanks(Binding("auto"), 0, 8, kSeven);
  EXPECT_EQ(placement->ranks[7].threads, 1);
  EXPECT_THAT(placement->ranks[7].cpus, IsEmpty());
  EXPECT_THAT(placement->warning, HasSubstr("8 ranks with 1 thread each share 7 CPUs"));
}

TEST(RankPlacementTest, ThreadsThatLeaveCpusOverAreNotBound) {
  EXPECT_THAT(PlaceRanks(Binding("auto"), 1, 3, kSeven)->ranks[0].cpus, IsEmpty());
  const HostCpus four{.cpus = {0, 1, 2, 3}, .num_threads = 4};
  EXPECT_THAT(PlaceRanks(Binding("auto"), 2, 2, four)->ranks[1].cpus, ElementsAre(2, 3));
  // A quota: which CPUs it is spent on is the system's choice.
  const HostCpus quota{.cpus = {0, 1, 2, 3}, .num_threads = 2};
  const auto placement = PlaceRanks(Binding("auto"), 0, 2, quota);
  EXPECT_EQ(placement->ranks[0].threads, 1);
  EXPECT_THAT(placement->ranks[0].cpus, IsEmpty());
}

TEST(RankPlacementTest, NoneBindsNothing) {
  EXPECT_THAT(PlaceRanks(Binding("none"), 0, 7, kSeven)->ranks[0].cpus, IsEmpty());
}

TEST(RankPlacementTest, AListIsDealtOut) {
  const auto placement = PlaceRanks(Binding("4-7"), 0, 2, kSeven);
  EXPECT_THAT(placement->ranks[0].cpus, ElementsAre(4, 5));
  EXPECT_THAT(placement->ranks[1].cpus, ElementsAre(6, 7));
  EXPECT_THAT(std::string(PlaceRanks(Binding("4-8"), 0, 2, kSeven).status().message()),
              HasSubstr("--cpu-binding names 5 CPUs, want a multiple of 2 for the 2 ranks"));
  EXPECT_THAT(std::string(PlaceRanks(Binding("4-7"), 1, 2, kSeven).status().message()),
              HasSubstr("--cpu-binding names 4 CPUs, want 2 (1 each) for the 2 ranks"));
}

}  // namespace
}  // namespace nibble::cli
