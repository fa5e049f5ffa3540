// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The driver against ranks that do what the test says.

#include "engine/exec/rank_group.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/exec/rank_group_fixture.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::kTimeout;
using testing::RankGroupTest;
using testing::Script;
using testing::SomePlan;
using testing::ThreadHub;

TEST_F(RankGroupTest, StartsAndComputes) {
  ASSERT_TRUE(Start(3).ok());
  EXPECT_TRUE(group_->Ready().ok());
  EXPECT_EQ(group_->limits().num_blocks, 10);
  EXPECT_EQ(group_->limits().block_size, 4);
  EXPECT_EQ(group_->limits().max_model_len, 40);
  EXPECT_EQ(group_->limits().vocab_size, Script::kVocabSize);
  EXPECT_EQ(group_->ranks().size(), 3U);
  EXPECT_EQ(comm::Serialize(group_->policy()), testing::SomePolicy());
  for (int i = 0; i < 100; ++i) ExpectStepWorks();
  const auto empty = group_->Execute({});
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_TRUE(empty->tokens.empty());
  WaitUntilFormed(1);
  group_.reset();
  EXPECT_THAT(observer_.formed(), ElementsAre(1U));
  EXPECT_TRUE(observer_.lost().empty());
}

TEST_F(RankGroupTest, ARankThatDiesInAStepIsNamedAndTheGroupFormsAnew) {
  ASSERT_TRUE(Start().ok());
  ExpectStepWorks();
  script_->With([](Script* s) {
    s->die_in_step = {1};
    s->hold_steps = false;
  });
  // Rank 0 of the script does not need rank 1, so it may answer before the loss is seen.
  const absl::Status status = group_->Execute(SomePlan()).status();
  if (!status.ok()) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 (pid 201): exited"));
  } else {
    while (observer_.lost().empty()) std::this_thread::sleep_for(milliseconds(1));
    ExpectRecovery(HasSubstr("rank 1 (pid 201): exited"));
  }
  WaitUntilReady();
  ExpectStepWorks();
  WaitUntilFormed(2);
  group_.reset();
  EXPECT_THAT(observer_.formed(), ElementsAre(1U, 2U));
  ASSERT_EQ(observer_.lost().size(), 1U);
  EXPECT_EQ(observer_.lost()[0].first, 1);
  // The measured policy is told to the second generation.
  EXPECT_THAT(script_->policies_told, ElementsAre("", testing::SomePolicy()));
  EXPECT_THAT(script_->aborted, ElementsAre(1U));
  EXPECT_THAT(script_->clean_from, ElementsAre(1U, 1U));
}

TEST_F(RankGroupTest, Rank0ThatDiesInAStepEndsTheStep) {
  ASSERT_TRUE(Start().ok());
  script_->With([](Script* s) { s->die_in_step = {0}; });
  ExpectRecovery(HasSubstr("rank 0 (pid 101): exited"));
}

TEST_F(RankGroupTest, ARankThatIsKilledWhileIdleIsSeenAndTold) {
  ASSERT_TRUE(Start().ok());
  ExpectStepWorks();
  hub_->SetRevive(false);
  hub_->Kill(1);
  while (group_->Ready().ok()) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(group_->Ready().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(group_->Ready().message()),
              HasSubstr("rank 1 (pid 201): killed by signal 9"));
  hub_->SetRevive(true);
  WaitUntilReady();
  // Ready, but the blocks are gone: that is told once.
  ExpectRecovery(HasSubstr("rank 1 (pid 201): killed by signal 9"));
  WaitUntilFormed(2);
  EXPECT_THAT(observer_.formed(), ElementsAre(1U, 2U));
}

TEST_F(RankGroupTest, ALossBeforeAnyStepLosesNothing) {
  ASSERT_TRUE(Start().ok());
  hub_->Kill(1);
  WaitUntilFormed(2);
  ExpectStepWorks();
}

TEST_F(RankGroupTest, ARankThatStopsAnsweringIsStartedAnew) {
  ASSERT_TRUE(Start().ok());
  script_->With([](Script* s) { s->silent_in_step = {0}; });
  ExpectRecovery(AllOf(HasSubstr("rank 0 (pid 101): no answer for 0.3"), HasSubstr(" s")));
  EXPECT_EQ(hub_->num_starts(0), 2);
  ASSERT_EQ(hub_->restarts().size(), 1U);
  EXPECT_THAT(hub_->restarts()[0], HasSubstr("no answer"));
}

TEST_F(RankGroupTest, ARankThatIsFrozenWhileIdleIsStartedAnew) {
  ASSERT_TRUE(Start().ok());
  ExpectStepWorks();
  hub_->Freeze(1);
  while (observer_.lost().empty()) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_THAT(observer_.lost()[0].second, HasSubstr("rank 1 (pid 201): no answer for"));
  ExpectRecovery(HasSubstr("no answer"));
}

// The survivor complains first; who is silent is to blame.
TEST_F(RankGroupTest, TheSilentRankIsBlamedAndNotTheOneThatComplains) {
  ASSERT_TRUE(Start().ok());
  time_->Stop();
  script_->With([](Script* s) { s->in_step = {{0, Unavailable("peer 1 is gone")}}; });
  hub_->Freeze(1);
  const StepPlan plan = SomePlan();
  ASSERT_TRUE(group_->Begin(plan).ok());
  while (group_->Ready().ok()) std::this_thread::sleep_for(milliseconds(1));  // it has complained
  time_->Run();
  EXPECT_THAT(std::string(group_->Finish().status().message()),
              HasSubstr("rank 1 (pid 201): no answer"));
  WaitUntilReady();
  ExpectStepWorks();
  ASSERT_EQ(observer_.lost().size(), 1U);
  EXPECT_EQ(observer_.lost()[0].first, 1);
}

TEST_F(RankGroupTest, WhenAllAnswerTheComplaintIsBelieved) {
  ASSERT_TRUE(Start().ok());
  script_->With([](Script* s) {
    s->in_step = {{0, absl::DeadlineExceededError("peer 1 did not answer for 60 s")}};
  });
  ExpectRecovery(HasSubstr("rank 0 (pid 101): peer 1 did not answer for 60 s"));
  EXPECT_TRUE(observer_.lost().empty());
  EXPECT_THAT(observer_.broken(), ElementsAre("rank 0 (pid 101): peer 1 did not answer for 60 s"));
  EXPECT_EQ(hub_->num_starts(0), 1);  // weights are kept
  EXPECT_EQ(hub_->num_starts(1), 1);
}

TEST_F(RankGroupTest, AnotherRanksErrorEndsTheStepToo) {
  ASSERT_TRUE(Start().ok());
  script_->With([](Script* s) {
    s->in_step = {{1, Unavailable("peer 0 is gone")}};
    s->instead_of_step_done = {{0, MakeFrame(PongPayload{})}};
  });
  ExpectRecovery(HasSubstr("rank 1 (pid 201): peer 0 is gone"));
}

TEST_F(RankGroupTest, AnErrorThatWouldComeAgainIsFinal) {
  ASSERT_TRUE(Start().ok());
  script_->With([](Script* s) { s->in_step = {{0, ResourceExhausted("memory ran out")}}; });
  const absl::Status status = group_->Execute(SomePlan()).status();
  EXPECT_EQ(status, ResourceExhausted("rank 0 (pid 101): memory ran out"));
  EXPECT_EQ(group_->Ready(), status);
  EXPECT_EQ(group_->Execute(SomePlan()).status(), status);
}

TEST_F(RankGroupTest, GarbageIsTheEndOfThatProcess) {
  const comm::Frame garbage[] = {{.type = 4711, .payload = "x"},
                                 MakeFrame(RankMessage::kStepDone, "garbage"),
                                 MakeFrame(RankMessage::kPong, "garbage"),
                                 MakeFrame(RankMessage::kConnected, "")};
  for (const comm::Frame& frame : garbage) {
    script_ = std::make_shared<Script>();
    ASSERT_TRUE(Start().ok());
    script_->With([&](Script* s) { s->instead_of_step_done = {{0, frame}}; });
    ExpectRecovery(HasSubstr("rank 0 (pid 101): sent what is no message of a rank: "));
    EXPECT_EQ(hub_->num_starts(0), 2);
    group_.reset();
  }
}

TEST_F(RankGroupTest, DeathsWhileLoadingAndFormingAreSurvived) {
  script_->With([](Script* s) {
    s->die_in_load = {0, 1};
    s->die_in_prepare = {1};
    s->in_connect = {{0, absl::DeadlineExceededError("rank 1 did not come")}};
  });
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(observer_.lost().size(), 3U);
  ExpectStepWorks();
  script_->With([](Script* s) {
    s->in_prepare = {{0, Unavailable("the address is taken")}};
    s->in_connect = {{1, Unavailable("peer 0 is gone")}};
    s->die_in_load = {1};
  });
  hub_->Kill(1);
  while (observer_.lost().size() < 4) std::this_thread::sleep_for(milliseconds(1));
  ExpectRecovery(::testing::_);
}

TEST_F(RankGroupTest, ARankThatDiesAgainAndAgainAtTheStartEndsIt) {
  std::atomic<int> num_lives{0};
  auto hub = std::make_unique<ThreadHub>(1, [&](int, comm::FrameChannel*) { ++num_lives; });
  RankGroupOptions options{.node_of_rank = {0}, .group_id = "g"};
  const auto group = RankGroup::Start(std::move(hub), options, {}, nullptr, {});
  EXPECT_EQ(group.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(group.status().message()),
              HasSubstr("exited; it was lost 3 times before the group was formed once"));
  EXPECT_GE(num_lives, 3);
}

TEST_F(RankGroupTest, WhatCannotLoadEndsTheStart) {
  script_->With([](Script* s) { s->in_load = {{1, NotFound("no config.json")}}; });
  EXPECT_EQ(Start(), NotFound("rank 1 (pid 201): no config.json"));
}

TEST_F(RankGroupTest, SizesThatDoNotFitEndTheStart) {
  choose_error_ = ResourceExhausted("no room for one block");
  EXPECT_EQ(Start(), choose_error_);
}

TEST_F(RankGroupTest, TheStartHasATimeLimit) {
  auto hub = std::make_unique<ThreadHub>(1, [](int, comm::FrameChannel* channel) {
    for (;;) {
      const auto frame = channel->Receive();
      if (!frame.ok()) return;
      if (frame->type != static_cast<uint32_t>(RankMessage::kPing)) continue;
      channel->Send(MakeFrame(PongPayload{})).IgnoreError();
    }
  });
  RankGroupOptions options{.node_of_rank = {0}, .group_id = "g"};
  options.start_timeout = options.rank_timeout = kTimeout;
  options.clock = time_;
  time_->Watch(hub.get());
  time_->RunFor(kTimeout);
  const auto group = RankGroup::Start(std::move(hub), options, {}, nullptr, {});
  EXPECT_EQ(group.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("is loading"));
}

TEST_F(RankGroupTest, AnotherModelOrRankIsRefusedByName) {
  for (const bool wrong_rank : {false, true}) {
    auto hub = std::make_unique<ThreadHub>(1, [&](int, comm::FrameChannel* channel) {
      for (;;) {
        const auto frame = channel->Receive();
        if (!frame.ok()) return;
        channel
            ->Send(MakeFrame(LoadedPayload{
                .rank = wrong_rank ? 1 : 0, .size = 2 - !wrong_rank, .vocab_size = 5}))
            .IgnoreError();
      }
    });
    RankGroupOptions options{.node_of_rank = {0}, .group_id = "g"};
    options.vocab_size = 6;
    const auto group = RankGroup::Start(std::move(hub), options, {}, nullptr, {});
    EXPECT_THAT(std::string(group.status().message()),
                HasSubstr(wrong_rank ? "says that it is rank 1 of 2, want rank 0 of 1"
                                     : "has another model: vocabulary 5"));
  }
}

TEST_F(RankGroupTest, BadOptionsAreRefused) {
  const auto refusal = [](RankGroupOptions options) {
    auto hub = std::make_unique<ThreadHub>(2, [](int, comm::FrameChannel*) {});
    return std::string(
        RankGroup::Start(std::move(hub), options, {}, nullptr, {}).status().message());
  };
  EXPECT_THAT(refusal({.node_of_rank = {0}}), HasSubstr("node_of_rank has 1 ranks, the hub has 2"));
  EXPECT_THAT(refusal({.node_of_rank = {0, 2}}),
              HasSubstr("rank 1 is on node 2, the limits are 0 and 1"));
  EXPECT_THAT(refusal({}), HasSubstr("a group of 0 ranks"));
  EXPECT_THAT(refusal({.node_of_rank = {0, 0}, .rank_timeout = milliseconds(0)}),
              HasSubstr("rank_timeout is 0 ms"));
}

TEST_F(RankGroupTest, TheEndComesDuringAnOutageToo) {
  ASSERT_TRUE(Start().ok());
  hub_->SetRevive(false);
  hub_->Kill(1);
  while (group_->Ready().ok()) std::this_thread::sleep_for(milliseconds(1));
  group_.reset();
}

// Ranks die and freeze at random while steps run; no step hangs, every answer is right.
TEST_F(RankGroupTest, RandomFaultsNeverHangAndNeverGiveAWrongToken) {
  ASSERT_TRUE(Start(3).ok());
  testing::Random random(3);
  int num_done = 0;
  for (int round = 0; round < 60; ++round) {
    const int rank = static_cast<int>(random.Int(0, 2));
    switch (random.Int(0, 8)) {
      case 0:
        hub_->Kill(rank);
        break;
      case 1:
        script_->With([&](Script* s) { s->die_in_step.insert(rank); });
        break;
      case 2:
        script_->With([&](Script* s) { s->in_step[rank] = Unavailable("a peer is gone"); });
        break;
      case 3:
        script_->With([&](Script* s) { s->die_in_prepare.insert(rank); });
        break;
      case 4:
        script_->With([&](Script* s) { s->in_connect[rank] = Unavailable("a peer is gone"); });
        break;
      case 5:
        hub_->Freeze(rank);
        break;
      default:
        break;
    }
    const auto token = static_cast<int32_t>(random.Int(0, 50));
    const auto output = group_->Execute(SomePlan(token));
    if (output.ok()) {
      ++num_done;
      EXPECT_EQ(output->tokens.at(0).token_id, testing::TokenOf(SomePlan(token), 0));
    } else {
      ASSERT_EQ(output.status().code(), absl::StatusCode::kUnavailable) << output.status();
      WaitUntilReady();
    }
  }
  EXPECT_GT(num_done, 10);
}

}  // namespace
}  // namespace nibble::engine
