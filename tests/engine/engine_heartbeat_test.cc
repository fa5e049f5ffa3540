// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What an engine tells of its progress: from the moment work is there, whatever hangs.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/heartbeat.h"
#include "tests/engine/engine_rig.h"

namespace nibble::engine {
namespace {

using testing::Count;
using testing::EngineRig;
using testing::FakeSink;

constexpr int64_t kSecond = 1'000'000'000;

// Of an engine that was idle for long, and has taken steps before.
class EngineHeartbeatTest : public ::testing::Test {
 protected:
  EngineHeartbeatTest() {
    rig_.Submit(Count(3), {.max_tokens = 4, .ignore_eos = true})->WaitForEnd();
    WaitUntilIdle();
    rig_.device().clock.Advance(1000 * kSecond);
  }
  int64_t Now() { return rig_.device().clock.NowNs(); }
  int64_t Since() { return rig_.engine().Progress().waiting_since_ns(); }
  // The last delta is out a moment before the work is told to be done.
  void WaitUntilIdle() {
    while (Since() >= 0) std::this_thread::yield();
  }

  EngineRig rig_;
};

TEST_F(EngineHeartbeatTest, AnIdleEngineOwesNothing) {
  EXPECT_EQ(Since(), -1);
  EXPECT_LT(rig_.engine().Progress().last_step_ns, Now() - 999 * kSecond);
}

TEST_F(EngineHeartbeatTest, AStepThatHangsCountsFromItsStart) {
  rig_.device().CloseGate();
  const int64_t submitted_ns = Now();
  const auto sink = rig_.Submit(Count(3), {.max_tokens = 4, .ignore_eos = true});
  // At once, and not only when a step was planned.
  EXPECT_EQ(Since(), submitted_ns);
  rig_.device().WaitForSteps(5);
  EXPECT_EQ(rig_.engine().Progress().step_since_ns, submitted_ns);
  rig_.device().clock.Advance(90 * kSecond);
  EXPECT_EQ(Now() - Since(), 90 * kSecond);
  // Others that come do not hide it.
  const auto second = rig_.Submit(Count(3), {.max_tokens = 4, .ignore_eos = true});
  EXPECT_EQ(Now() - Since(), 90 * kSecond);
  rig_.device().OpenGate();
  sink->WaitForEnd();
  second->WaitForEnd();
  WaitUntilIdle();
  EXPECT_EQ(rig_.engine().Progress().step_since_ns, -1);
}

// Long answers: what counts is the last step, not when the work came.
TEST_F(EngineHeartbeatTest, EveryStepCounts) {
  std::atomic<int64_t> longest_ns{0};
  auto sink = std::make_shared<FakeSink>();
  sink->set_callback([&](const RequestOutput&) {
    rig_.device().clock.Advance(30 * kSecond);
    const int64_t age_ns = Now() - Since();
    longest_ns = std::max(longest_ns.load(), age_ns);
  });
  ASSERT_TRUE(rig_.engine()
                  .Submit({rig_.Request(Count(3), {.max_tokens = 20, .ignore_eos = true}, sink)})
                  .ok());
  sink->WaitForEnd();
  EXPECT_GE(longest_ns, 30 * kSecond);
  EXPECT_LE(longest_ns, 31 * kSecond);
}

// Not the executor but the engine thread itself stands still.
TEST_F(EngineHeartbeatTest, AnEngineThreadThatHangsIsSeen) {
  std::mutex mutex;
  std::condition_variable changed;
  bool hangs = false;
  bool go_on = false;
  auto sink = std::make_shared<FakeSink>();
  sink->set_callback([&](const RequestOutput&) {
    std::unique_lock lock(mutex);
    hangs = true;
    changed.notify_all();
    changed.wait(lock, [&] { return go_on; });
  });
  ASSERT_TRUE(rig_.engine()
                  .Submit({rig_.Request(Count(3), {.max_tokens = 4, .ignore_eos = true}, sink)})
                  .ok());
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return hangs; });
  }
  rig_.device().clock.Advance(70 * kSecond);
  EXPECT_GE(Now() - Since(), 70 * kSecond);
  {
    const std::lock_guard lock(mutex);
    go_on = true;
  }
  changed.notify_all();
  sink->WaitForEnd();
  WaitUntilIdle();
}

// No step is possible in an outage; it must not look like a stall when it is over.
TEST_F(EngineHeartbeatTest, AnOutageIsNoStall) {
  rig_.device().LoseAtNextStep();
  const auto sink = rig_.Submit(Count(3), {.max_tokens = 8, .ignore_eos = true});
  rig_.device().WaitForPolls(2);
  EXPECT_TRUE(absl::IsUnavailable(rig_.engine().Health()));
  rig_.device().CloseGate();  // the step after the outage does not end it
  rig_.device().clock.Advance(50 * kSecond);
  const int64_t back_ns = Now();
  rig_.device().ComeBack();
  while (!rig_.engine().Health().ok()) std::this_thread::yield();
  EXPECT_GE(Since(), back_ns);
  // Also before its first step, which has not ended yet.
  EXPECT_GE(rig_.engine().Progress().last_step_ns, back_ns);
  rig_.device().OpenGate();
  sink->WaitForEnd();
}

TEST_F(EngineHeartbeatTest, WorkThatIsCancelledIsDone) {
  rig_.device().CloseGate();
  RequestId id = 0;
  const auto sink = rig_.Submit(Count(3), {.max_tokens = 4, .ignore_eos = true}, 0, &id);
  rig_.engine().Cancel(id);
  rig_.device().OpenGate();
  sink->WaitForEnd();
  WaitUntilIdle();
  ASSERT_TRUE(rig_.engine().Submit({}).ok());  // nothing comes of nothing
  EXPECT_EQ(Since(), -1);
}

TEST(HeartbeatTest, TheNextOfSeveralStepsCountsFromTheEndOfTheOneBefore) {
  Heartbeat heartbeat(5);
  heartbeat.WorkCame(10);
  heartbeat.StepBegan(20);
  EXPECT_EQ(heartbeat.Read().waiting_since_ns(), 20);
  heartbeat.StepEnded(30, /*is_next_under_way=*/true);
  EXPECT_EQ(heartbeat.Read().step_since_ns, 30);
  heartbeat.StepEnded(40, /*is_next_under_way=*/false);
  EXPECT_EQ(heartbeat.Read().step_since_ns, -1);
  EXPECT_EQ(heartbeat.Read().waiting_since_ns(), 40);
  heartbeat.WorkIsDone();
  EXPECT_EQ(heartbeat.Read().waiting_since_ns(), -1);
}

}  // namespace
}  // namespace nibble::engine
