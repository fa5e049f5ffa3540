// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/schedule.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::client {
namespace {

TEST(ScheduleTest, OpenLoopStartsAtArrivals) {
  Schedule schedule({10, 20, 20}, 0);
  EXPECT_EQ(schedule.NextNs(), 10);
  EXPECT_FALSE(schedule.TakeDue(9).has_value());
  const auto first = schedule.TakeDue(15);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->idx, 0u);
  EXPECT_EQ(first->arrival_ns, 10);
  EXPECT_EQ(first->ready_ns, 10);
  EXPECT_FALSE(schedule.TakeDue(15).has_value());
  EXPECT_EQ(schedule.TakeDue(20)->idx, 1u);
  EXPECT_EQ(schedule.TakeDue(20)->idx, 2u);
  EXPECT_EQ(schedule.running(), 3);
  EXPECT_EQ(schedule.NextNs(), Schedule::kNever);
  EXPECT_FALSE(schedule.done());
  for (int i = 0; i < 3; ++i) schedule.OnEnd(30);
  EXPECT_TRUE(schedule.done());
}

TEST(ScheduleTest, ClosedLoopWaitsForAPlace) {
  Schedule schedule({0, 0, 0, 50}, 2);
  EXPECT_TRUE(schedule.TakeDue(0).has_value());
  EXPECT_TRUE(schedule.TakeDue(0).has_value());
  EXPECT_FALSE(schedule.TakeDue(1'000).has_value());
  EXPECT_EQ(schedule.NextNs(), Schedule::kNever);
  schedule.OnEnd(30);
  schedule.OnEnd(40);
  const auto third = schedule.TakeDue(45);
  EXPECT_EQ(third->arrival_ns, 0);
  EXPECT_EQ(third->ready_ns, 30);  // the place that was free first
  // A place is free from 40 on, but the request comes at 50.
  EXPECT_EQ(schedule.NextNs(), 50);
  EXPECT_FALSE(schedule.TakeDue(45).has_value());
  EXPECT_EQ(schedule.TakeDue(60)->ready_ns, 50);
}

TEST(ScheduleTest, StopStartsNothingMore) {
  Schedule schedule({0, 0}, 1);
  EXPECT_TRUE(schedule.TakeDue(0).has_value());
  schedule.Stop();
  EXPECT_FALSE(schedule.done());
  schedule.OnEnd(10);
  EXPECT_FALSE(schedule.TakeDue(20).has_value());
  EXPECT_TRUE(schedule.done());
}

TEST(ScheduleTest, NothingIsDoneAtOnce) { EXPECT_TRUE(Schedule({}, 4).done()); }

}  // namespace
}  // namespace nibble::client
