// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/moe/placement.h"

#include <algorithm>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

ExpertLoad LoadOf(const std::vector<std::vector<uint64_t>>& layers) {
  ExpertLoad load{.num_layers = static_cast<int64_t>(layers.size()),
                  .num_experts = static_cast<int64_t>(layers[0].size()),
                  .tokens = {}};
  for (const auto& layer : layers) {
    load.tokens.insert(load.tokens.end(), layer.begin(), layer.end());
  }
  return load;
}

// No rank has two copies of an expert.
void ExpectApart(const ExpertLayout& layout, int64_t num_ranks, const std::string& what) {
  const int64_t slots_of_rank = layout.num_slots / num_ranks;
  for (int64_t first = 0; first < static_cast<int64_t>(layout.expert_of_slot.size());
       first += slots_of_rank) {
    const auto begin = layout.expert_of_slot.begin() + first;
    const std::set<int32_t> experts(begin, begin + slots_of_rank);
    EXPECT_EQ(static_cast<int64_t>(experts.size()), slots_of_rank)
        << what << ", layer " << first / layout.num_slots << ", rank "
        << first % layout.num_slots / slots_of_rank;
  }
}

// The example of github.com/deepseek-ai/EPLB's README.
const ExpertLoad& Example() {
  static const ExpertLoad load = LoadOf({{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                                         {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}});
  return load;
}

TEST(Placement, TheReferencesExample) {
  const auto layout =
      PlaceExperts(Example(), {.num_slots = 16, .num_groups = 4, .num_nodes = 2, .num_ranks = 8});
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->num_experts, 12);
  EXPECT_EQ(layout->num_slots, 16);
  EXPECT_THAT(layout->expert_of_slot,
              ElementsAreArray({5, 6,  5, 7, 8, 4,  3, 4, 10, 9, 10, 2, 0, 1, 11, 1,  //
                                7, 10, 6, 8, 6, 11, 8, 9, 2,  4, 5,  1, 5, 0, 3,  1}));
}

// 4 groups on 3 nodes: experts go wherever their loads fit.
TEST(Placement, GlobalWhereGroupsDoNotDivideAmongNodes) {
  const auto by_group =
      PlaceExperts(Example(), {.num_slots = 18, .num_groups = 4, .num_nodes = 3, .num_ranks = 6});
  const auto global = PlaceExperts(Example(), {.num_slots = 18, .num_ranks = 6});
  ASSERT_TRUE(by_group.ok() && global.ok());
  EXPECT_EQ(by_group->expert_of_slot, global->expert_of_slot);
  for (const double value : Balancedness(Example(), *global, 6)) EXPECT_GT(value, 0.9);
}

TEST(Placement, ReplicasBalanceASkewedLoad) {
  const ExpertLoad load = LoadOf({{900, 100, 100, 100, 100, 100, 100, 100}});
  EXPECT_THAT(Balancedness(load, ExpertLayout::Uniform(1, 8), 4),
              ElementsAre(DoubleNear(0.4, 1e-12)));
  const auto layout = PlaceExperts(load, {.num_slots = 12, .num_ranks = 4});
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(std::count(layout->expert_of_slot.begin(), layout->expert_of_slot.end(), 0), 4);
  EXPECT_GT(Balancedness(load, *layout, 4)[0], 0.9);
}

// Without replicas: heaviest first to the lightest rank.
TEST(Placement, PacksWithoutReplicas) {
  const auto layout = PlaceExperts(LoadOf({{1, 8, 2, 7}}), {.num_slots = 4, .num_ranks = 2});
  ASSERT_TRUE(layout.ok());
  EXPECT_THAT(layout->expert_of_slot, ElementsAre(1, 0, 3, 2));
}

TEST(Placement, EqualLoadsGoByNumber) {
  const auto layout =
      PlaceExperts(LoadOf({{0, 0, 0, 0}, {5, 5, 5, 5}}), {.num_slots = 6, .num_ranks = 2});
  ASSERT_TRUE(layout.ok());
  // A layer without tokens spreads its replicas, too.
  EXPECT_THAT(layout->expert_of_slot, ElementsAre(0, 1, 2, 3, 0, 1, 2, 0, 1, 3, 1, 0));
}

// Heaviest first leaves the last copy of expert 1 a rank that has one: experts 0, 1, 2, 1 of load 2
// each would be {0, 2} and {1, 1}.
TEST(Placement, ADeadEndIsSwappedAway) {
  const auto layout = PlaceExperts(LoadOf({{2, 4, 2}}), {.num_slots = 4, .num_ranks = 2});
  ASSERT_TRUE(layout.ok());
  ExpectApart(*layout, 2, "dead end");
  EXPECT_THAT(layout->expert_of_slot, ElementsAre(1, 2, 1, 0));
}

TEST(Placement, CopiesAreApartWhateverTheLoads) {
  testing::Random random(7);
  for (int i = 0; i < 400; ++i) {
    const int64_t num_nodes = random.Int(1, 3);
    const int64_t num_groups = num_nodes * random.Int(1, 3);
    const int64_t num_experts = num_groups * random.Int(1, 4);
    const int64_t ranks_of_node = random.Int(1, 4);
    const int64_t num_ranks = num_nodes * ranks_of_node;
    const int64_t min_slots = (num_experts + num_ranks - 1) / num_ranks;
    const int64_t slots_of_rank = random.Int(min_slots, num_experts / num_nodes);
    if (slots_of_rank * num_ranks < num_experts) continue;
    ExpertLoad load{.num_layers = 2, .num_experts = num_experts, .tokens = {}};
    const int64_t limit = random.Int(1, 20);  // small: many ties
    for (int64_t e = 0; e < 2 * num_experts; ++e) {
      const bool is_hot = random.Int(0, 9) == 0;
      load.tokens.push_back(static_cast<uint64_t>(is_hot ? 1000 : random.Int(0, limit)));
    }
    const PlacementShape shape = {.num_slots = slots_of_rank * num_ranks,
                                  .num_groups = num_groups,
                                  .num_nodes = num_nodes,
                                  .num_ranks = num_ranks};
    const std::string what =
        fmt::format("{} experts, {} slots, {} groups, {} nodes, {} ranks", num_experts,
                    shape.num_slots, num_groups, num_nodes, num_ranks);
    const auto layout = PlaceExperts(load, shape);
    ASSERT_TRUE(layout.ok()) << layout.status();
    EXPECT_TRUE(CheckExpertLayout(*layout, 2, num_experts, num_ranks).ok()) << what;
    ExpectApart(*layout, num_ranks, what);
    for (const double value : Balancedness(load, *layout, num_ranks)) {
      EXPECT_GT(value, 0.0) << what;
      EXPECT_LE(value, 1.0 + 1e-9) << what;
    }
  }
}

TEST(Placement, ShapesThatDoNotFit) {
  struct Case {
    PlacementShape shape;
    const char* message;
  };
  const Case cases[] = {
      {{.num_slots = 12, .num_ranks = 5},
       "12 experts and copies: must be at least the 12 experts and a multiple of the 5 ranks"},
      {{.num_slots = 8, .num_ranks = 4}, "8 experts and copies: must be at least the 12 experts"},
      {{.num_slots = 36, .num_ranks = 2},
       "36 experts and copies: the limit is 24: 12 experts on 2 ranks"},
      {{.num_slots = 12, .num_groups = 5, .num_ranks = 2}, "5 groups, must divide the 12 experts"},
      {{.num_slots = 12, .num_nodes = 2, .num_ranks = 3},
       "3 ranks, must be a multiple of the 2 nodes"},
      {{.num_slots = 12, .num_ranks = 0}, "0 ranks, must be 1..4096"},
      {{.num_slots = 12, .num_groups = -1}, "-1 groups, must be 1..4096"},
      {{.num_slots = 12, .num_nodes = 0}, "0 nodes, must be 1..4096"},
      // Groups that stay on a node of two ranks: two copies at most.
      {{.num_slots = 28, .num_groups = 2, .num_nodes = 2, .num_ranks = 4},
       "28 experts and copies: the limit is 24: 12 experts on 2 ranks of their node"},
  };
  for (const Case& c : cases) {
    const auto layout = PlaceExperts(Example(), c.shape);
    EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(layout.status().message()), HasSubstr(c.message));
  }
  EXPECT_FALSE(PlaceExperts({}, {.num_slots = 1}).ok());
  const ExpertLoad many = LoadOf({std::vector<uint64_t>(512, 1)});
  EXPECT_TRUE(PlaceExperts(many, {.num_slots = 4096, .num_ranks = 16}).ok());
  EXPECT_EQ(PlaceExperts(many, {.num_slots = 4112, .num_ranks = 16}).status(),
            InvalidArgument("placing 4112 experts and copies: the limit is 4096"));
}

TEST(Balancedness, CopiesShareALoad) {
  const ExpertLoad load = LoadOf({{6, 2, 0}, {0, 0, 0}, {0, 0, 8}});
  const ExpertLayout layout = {
      .num_experts = 3, .num_slots = 4, .expert_of_slot = {0, 1, 0, 2, 0, 1, 2, 2, 0, 1, 2, 2}};
  // Ranks of the first layer: 3 + 2 and 3 + 0; without tokens 1; all on the second rank.
  EXPECT_THAT(Balancedness(load, layout, 2),
              ElementsAre(DoubleNear(0.8, 1e-12), 1.0, DoubleNear(0.5, 1e-12)));
}

}  // namespace
}  // namespace nibble::engine
