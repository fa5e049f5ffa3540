// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The driver against ranks that answer and yet do not get on, that cannot load or join, and against
// hosts that come and go.

#include <atomic>
#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/exec/rank_group.h"
#include "tests/engine/exec/rank_group_fixture.h"

namespace nibble::engine {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::kTimeout;
using testing::Script;
using testing::ScriptedRank;
using testing::SomePlan;
using testing::ThreadHub;

class RankGroupFaults : public testing::RankGroupTest {
 protected:
  // A step that ends when a generation does, after which time stands still.
  absl::Status BreakStep() {
    const StepPlan plan = SomePlan();
    const absl::Status status = group_->Begin(plan);
    if (!status.ok()) return status;
    PassUntilBroken();
    return group_->Finish().status();
  }
};

TEST_F(RankGroupFaults, WhatCannotLoadLaterIsTriedAgain) {
  ASSERT_TRUE(Start().ok());
  script_->With([](Script* s) { s->in_load = {{1, NotFound("the disk is gone")}}; });
  hub_->Kill(1);
  while (observer_.lost().empty()) std::this_thread::sleep_for(milliseconds(1));
  WaitUntilReady();
  ExpectStepWorks();
  ASSERT_EQ(observer_.lost().size(), 2U);
  EXPECT_EQ(observer_.lost()[1].second, "rank 1 (pid 202): the disk is gone");
  EXPECT_THAT(observer_.reasons(),
              ElementsAre(comm::LossReason::kKilled, comm::LossReason::kFailed));
  EXPECT_EQ(observer_.broken().size(), 1U);  // the outage is one
}

TEST_F(RankGroupFaults, AGenerationThatCannotComeToBeEndsTheStart) {
  script_->With([](Script* s) {
    s->always_in_prepare = {{1, absl::UnimplementedError("no network library")}};
  });
  EXPECT_EQ(Start(), absl::UnimplementedError("rank 1 (pid 201): no network library"));
}

TEST_F(RankGroupFaults, GenerationsThatFailAgainAndAgainEndTheStart) {
  script_->With([](Script* s) { s->always_in_prepare = {{1, Unavailable("not bound")}}; });
  EXPECT_EQ(Start(),
            Internal("rank 1 (pid 201): not bound; 5 generations ended so before one was formed"));
  EXPECT_TRUE(observer_.lost().empty());
}

TEST_F(RankGroupFaults, AGenerationThatCannotComeToBeLaterIsTriedAgain) {
  ASSERT_TRUE(Start().ok());
  ExpectStepWorks();
  script_->With([](Script* s) { s->in_prepare = {{1, ResourceExhausted("no shared memory")}}; });
  hub_->Kill(0);
  WaitUntilFormed(2);
  ExpectRecovery(::testing::_);
  EXPECT_EQ(observer_.lost().size(), 1U);
}

// It answers pings all the while.
TEST_F(RankGroupFaults, ARankThatHangsIsNamedAndStartedAnew) {
  patience_.allocate = patience_.prepare = patience_.connect = kTimeout;
  const std::pair<std::set<int> Script::*, const char*> hangs[] = {
      {&Script::hung_in_allocate, "rank 1 (pid 201): answers, but has not taken its memory after"},
      {&Script::hung_in_prepare,
       "rank 1 (pid 201): answers, but has not prepared generation 1 within 0.3 s"},
      {&Script::hung_in_connect,
       "rank 1 (pid 201): answers, but has not joined generation 1 within 0.3 s"}};
  for (const auto& [where, says] : hangs) {
    script_ = std::make_shared<Script>();
    script_->With([where = where](Script* s) { s->*where = {1}; });
    ASSERT_TRUE(Start().ok());
    ExpectStepWorks();
    EXPECT_THAT(hub_->restarts(), ElementsAre(HasSubstr(says)));
    EXPECT_EQ(hub_->num_starts(0), 1);
    EXPECT_EQ(observer_.reasons().back(), comm::LossReason::kHung);
    group_.reset();
  }
}

TEST_F(RankGroupFaults, AStepThatDoesNotGetOnIsARankThatHangs) {
  patience_.compute = kTimeout;
  ASSERT_TRUE(Start().ok());
  time_->Stop();
  script_->With([](Script* s) {
    s->hold_steps = true;
    s->at = {{0, {.changes = 5, .phase = RankPhase::kCollective}},
             {1, {.changes = 5, .phase = RankPhase::kComputing}}};
  });
  const absl::Status status = BreakStep();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("rank 1 (pid 201): answers, but its step has not got on for "));
  script_->With([](Script* s) {
    s->hold_steps = false;
    s->at.clear();
  });
  WaitUntilReady();
  ExpectStepWorks();
  EXPECT_THAT(observer_.reasons(), ElementsAre(comm::LossReason::kHung));
}

// All answer, all wait: the network between them is dead.
TEST_F(RankGroupFaults, RanksThatWaitForEachOtherInVainEndTheGeneration) {
  for (const RankPhase other : {RankPhase::kIdle, RankPhase::kCollective}) {
    script_ = std::make_shared<Script>();
    ASSERT_TRUE(Start().ok());
    time_->Stop();
    script_->With([other](Script* s) {
      s->hold_steps = true;
      s->at = {{0, {.changes = 5, .operation = 17, .phase = RankPhase::kCollective}},
               {1, {.changes = 7, .operation = 17, .phase = other}}};
    });
    const absl::Status status = BreakStep();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("the ranks wait for each other for "),
                      HasSubstr("rank 0 (pid 101) in its operation 17")));
    script_->With([](Script* s) {
      s->hold_steps = false;
      s->at.clear();
    });
    WaitUntilReady();
    ExpectStepWorks();
    EXPECT_TRUE(observer_.lost().empty());  // nobody is to blame
    EXPECT_EQ(hub_->num_starts(0) + hub_->num_starts(1), 2);
    group_.reset();
  }
  EXPECT_EQ(observer_.broken().size(), 2U);
}

// One computes, or waits for much data: that may take as long as it takes.
TEST_F(RankGroupFaults, ALongStepIsNoDeadLink) {
  const RankActivity slow[] = {
      {.changes = 5, .phase = RankPhase::kComputing},
      {.changes = 5, .bytes = 1'000'000'000, .phase = RankPhase::kCollective}};
  for (const RankActivity& activity : slow) {
    script_ = std::make_shared<Script>();
    ASSERT_TRUE(Start().ok());
    time_->Stop();
    script_->With([&](Script* s) {
      s->at = {{0, {.changes = 5, .phase = RankPhase::kCollective}}, {1, activity}};
    });
    time_->Pass(4 * kTimeout);
    ExpectStepWorks();
    EXPECT_THAT(observer_.broken(), ::testing::IsEmpty());
    group_.reset();
  }
}

TEST_F(RankGroupFaults, ARankMayTakeItsTimeToSayItsFirstWord) {
  script_->With([](Script* s) { s->start_time = 3 * kTimeout; });
  ASSERT_TRUE(Start().ok());
  EXPECT_TRUE(observer_.lost().empty());
}

TEST_F(RankGroupFaults, ARankThatNeverSaysAWordIsStartedAnew) {
  patience_.first_word = 3 * kTimeout;
  script_->With([](Script* s) { s->mute = {1}; });
  ASSERT_TRUE(Start().ok());
  ASSERT_EQ(observer_.lost().size(), 1U);
  EXPECT_THAT(observer_.lost()[0].second, HasSubstr("rank 1 (pid 201): has said nothing in the "));
}

TEST_F(RankGroupFaults, WhatTheDriverItselfSleptIsNobodysSilence) {
  ASSERT_TRUE(Start().ok());
  for (const int timeouts : {2, 10, 1000}) {
    time_->Jump(timeouts * kTimeout);
    ExpectStepWorks();
    time_->Pass(2 * kTimeout);
    time_->Run();
  }
  EXPECT_TRUE(observer_.lost().empty());
  EXPECT_TRUE(observer_.broken().empty());
}

TEST_F(RankGroupFaults, HostsThatComeAndGoAtTheStartAreNoFaultOfTheirRanks) {
  auto lives = std::make_shared<std::atomic<int>>(0);
  auto hub = std::make_unique<ThreadHub>(2, [script = script_, lives](int rank, auto* channel) {
    if (rank == 1 && ++*lives <= 5) return;
    ScriptedRank(rank, channel, script).Run();
  });
  hub->SetReason(comm::LossReason::kUnreachable);
  RankGroupOptions options{.node_of_rank = {0, 1}, .group_id = "g"};
  options.vocab_size = Script::kVocabSize;
  options.row_size = Script::kRowSize;
  options.rank_timeout = milliseconds(20'000);
  const auto group = RankGroup::Start(
      std::move(hub), options,
      [](const auto&) { return LocalExecutorOptions{.num_blocks = 10, .max_model_len = 40}; },
      &observer_, {});
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(observer_.lost().size(), 5U);
}

TEST_F(RankGroupFaults, EveryGenerationIsToldTheAddressesThatHostsHaveNow) {
  ASSERT_TRUE(Start().ok());
  ExpectStepWorks();
  hub_->Kill(1);
  WaitUntilFormed(2);
  EXPECT_THAT(script_->bind_addresses, ElementsAre("10.0.1.1", "10.0.1.2"));
}

}  // namespace
}  // namespace nibble::engine
