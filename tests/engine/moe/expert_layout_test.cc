// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/moe/expert_layout.h"

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/moe/expert_load.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ErrorOf(const ExpertLayout& layout, int64_t num_layers, int64_t num_experts,
                    int64_t expert_size) {
  const absl::Status status = CheckExpertLayout(layout, num_layers, num_experts, expert_size);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(ExpertLayout, Uniform) {
  const ExpertLayout layout = ExpertLayout::Uniform(2, 3);
  EXPECT_THAT(layout.expert_of_slot, ElementsAre(0, 1, 2, 0, 1, 2));
  EXPECT_EQ(layout.num_layers(), 2);
  EXPECT_TRUE(CheckExpertLayout(layout, 2, 3, 3).ok());
}

TEST(ExpertLayout, Check) {
  const ExpertLayout layout = {
      .num_experts = 2, .num_slots = 4, .expert_of_slot = {0, 1, 1, 0, 1, 0, 0, 0}};
  EXPECT_TRUE(CheckExpertLayout(layout, 2, 2, 4).ok());
  EXPECT_THAT(ErrorOf(layout, 2, 3, 1), HasSubstr("of 2 experts, the model has 3"));
  EXPECT_THAT(ErrorOf(layout, 2, 2, 3), HasSubstr("has 4 slots"));
  EXPECT_THAT(ErrorOf(layout, 3, 2, 1), HasSubstr("has 8 entries, 3 layers of 4 slots have 12"));
  ExpertLayout bad = layout;
  bad.expert_of_slot[6] = 2;
  EXPECT_THAT(ErrorOf(bad, 2, 2, 1), HasSubstr("expert 2 in slot 2 of layer 1"));
  bad.expert_of_slot[6] = -1;
  EXPECT_THAT(ErrorOf(bad, 2, 2, 1), HasSubstr("expert -1 in slot 2 of layer 1"));
  bad = layout;
  bad.expert_of_slot[4] = 0;
  EXPECT_THAT(ErrorOf(bad, 2, 2, 1), HasSubstr("no slot for expert 1 of layer 1"));
}

// Copies take turns by position, whatever layer and order of slots.
TEST(SlotTable, CopiesTakeTurns) {
  const ExpertLayout layout = {
      .num_experts = 2, .num_slots = 4, .expert_of_slot = {0, 1, 0, 0, 1, 0, 1, 0}};
  const SlotTable first(layout, 0);
  EXPECT_EQ(first.SlotOf(1, 5), 1);
  EXPECT_EQ(first.SlotOf(0, 0), 0);
  EXPECT_EQ(first.SlotOf(0, 1), 2);
  EXPECT_EQ(first.SlotOf(0, 2), 3);
  EXPECT_EQ(first.SlotOf(0, 3), 0);
  const SlotTable second(layout, 1);
  EXPECT_EQ(second.SlotOf(1, 0), 0);
  EXPECT_EQ(second.SlotOf(1, 1), 2);
  EXPECT_EQ(second.SlotOf(0, 1), 3);
}

TEST(ExpertLoad, Add) {
  ExpertLoad sum;
  sum.Add({});
  EXPECT_TRUE(sum.empty());
  const ExpertLoad load = {.num_layers = 2, .num_experts = 2, .tokens = {1, 2, 3, 4}};
  sum.Add(load);
  sum.Add({});
  sum.Add(load);
  EXPECT_THAT(sum.tokens, ElementsAre(2, 4, 6, 8));
  EXPECT_EQ(sum.at(1, 0), 6U);
}

TEST(ExpertLoadCounter, IsReadWhileItCounts) {
  ExpertLoadCounter counter(2, 3);
  std::thread writer([&] {
    for (int i = 0; i < 1000; ++i) counter.Add(1, 2, 3);
  });
  uint64_t last = 0;
  for (int i = 0; i < 100; ++i) {
    const uint64_t now = counter.Read().at(1, 2);
    EXPECT_GE(now, last);
    last = now;
  }
  writer.join();
  EXPECT_THAT(counter.Read().tokens, ElementsAre(0, 0, 0, 0, 0, 3000));
}

}  // namespace
}  // namespace nibble::engine
