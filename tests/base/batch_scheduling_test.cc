// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/batch_scheduling.h"

#include <sched.h>

#include <atomic>
#include <optional>
#include <thread>

#include "gtest/gtest.h"

namespace nibble {
namespace {

int Policy() { return sched_getscheduler(0); }

// As a new thread would have it.
int PolicyOfNewThread() {
  int policy = -1;
  std::thread([&policy] { policy = Policy(); }).join();
  return policy;
}

TEST(BatchSchedulingTest, LastsForTheScopeAndForThreadsStartedInIt) {
  if (Policy() != SCHED_OTHER) GTEST_SKIP() << "this process has another policy";
  std::optional<ScopedBatchScheduling> outer(std::in_place);
  if (Policy() != SCHED_BATCH) GTEST_SKIP() << "the system refuses policies";
  { const ScopedBatchScheduling inner; }
  EXPECT_EQ(Policy(), SCHED_BATCH) << "an inner scope ends before the outer one";
  EXPECT_EQ(PolicyOfNewThread(), SCHED_BATCH);

  std::atomic<bool> ended{false};
  std::thread started([&ended] {
    while (!ended.load()) std::this_thread::yield();
    EXPECT_EQ(Policy(), SCHED_BATCH);
  });
  outer.reset();
  ended = true;
  started.join();
  EXPECT_EQ(Policy(), SCHED_OTHER);
  EXPECT_EQ(PolicyOfNewThread(), SCHED_OTHER);
}

}  // namespace
}  // namespace nibble
