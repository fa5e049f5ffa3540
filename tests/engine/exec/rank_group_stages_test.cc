// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The driver of ranks in several pipeline stages: steps under way at once, who answers them, what
// is made of ranks that wait for another stage, and what experts have to do.

#include <algorithm>
#include <chrono>
#include <deque>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/exec/rank_group.h"
#include "tests/engine/exec/rank_group_fixture.h"

namespace nibble::engine {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::kTimeout;
using testing::Script;
using testing::SomePlan;
using testing::TokenOf;

class RankGroupStages : public testing::RankGroupTest {
 protected:
  RankGroupStages() { num_stages_ = 2; }

  absl::Status Begin(int32_t token) {
    plans_.push_back(SomePlan(token));
    return group_->Begin(plans_.back());
  }
  void ExpectToken(int32_t token) {
    const auto output = group_->Finish();
    ASSERT_TRUE(output.ok()) << output.status();
    EXPECT_EQ(output->tokens.at(0).token_id, TokenOf(SomePlan(token), 0));
  }
  void ExpectLost(const ::testing::Matcher<std::string>& why) {
    const absl::Status status = group_->Finish().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), why);
  }
  // Rank 0 has both steps, and none is answered.
  void WaitForSteps(int count) {
    std::unique_lock lock(script_->mutex);
    script_->changed.wait(lock, [&] { return script_->num_steps >= count; });
  }

  std::deque<StepPlan> plans_;
};

TEST_F(RankGroupStages, AsManyStepsAreUnderWayAsThereAreStages) {
  for (const auto& [num_stages, size] : {std::pair{2, 2}, {3, 3}, {2, 4}}) {
    num_stages_ = num_stages;
    script_ = std::make_shared<Script>();
    ASSERT_TRUE(Start(size).ok());
    ASSERT_EQ(group_->max_steps_in_flight(), num_stages);
    script_->With([](Script* s) { s->steps_to_answer = 0; });
    for (int n = 0; n < num_stages; ++n) ASSERT_TRUE(Begin(n).ok());
    WaitForSteps(num_stages);
    for (int n = 0; n < 20; ++n) {
      script_->With([](Script* s) { ++s->steps_to_answer; });
      ExpectToken(n);
      ASSERT_TRUE(Begin(n + num_stages).ok());
    }
    script_->With([](Script* s) { s->steps_to_answer = 100; });
    for (int n = 0; n < num_stages; ++n) ExpectToken(20 + n);
    EXPECT_EQ(group_->Finish().status().code(), absl::StatusCode::kFailedPrecondition);
    group_.reset();
  }
}

TEST_F(RankGroupStages, ALossEndsAllStepsUnderWay) {
  ASSERT_TRUE(Start(4).ok());
  script_->With([](Script* s) { s->steps_to_answer = 1; });
  ASSERT_TRUE(Begin(1).ok());
  ASSERT_TRUE(Begin(2).ok());
  ExpectToken(1);
  ASSERT_TRUE(Begin(3).ok());
  WaitForSteps(3);
  hub_->Kill(1);
  ExpectLost(HasSubstr("rank 1 (pid 201)"));
  ExpectLost(HasSubstr("rank 1"));
  script_->With([](Script* s) { s->steps_to_answer = 100; });
  WaitUntilReady();
  ExpectStepWorks();  // the loss was told
  EXPECT_EQ(hub_->num_starts(3), 1);
}

// A caller that has not heard of the loss begins a step when all are back: its blocks are lost, and
// the older steps' errors tell.
TEST_F(RankGroupStages, StepsOfAnOldGenerationStayLost) {
  ASSERT_TRUE(Start(2).ok());
  script_->With([](Script* s) { s->steps_to_answer = 0; });
  ASSERT_TRUE(Begin(1).ok());
  WaitForSteps(1);
  hub_->Kill(0);
  WaitUntilFormed(2);
  EXPECT_EQ(Begin(2).code(), absl::StatusCode::kUnavailable);
  script_->With([](Script* s) { s->steps_to_answer = 100; });
  ASSERT_TRUE(Begin(3).ok());
  std::this_thread::sleep_for(milliseconds(20));  // its answer comes before the lost step's end
  ExpectLost(HasSubstr("rank 0 (pid 101)"));
  ExpectToken(3);
  // What the new generation wrote is lost untold in its turn.
  hub_->Kill(1);
  WaitUntilFormed(3);
  EXPECT_EQ(Begin(4).code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(Begin(5).ok());
  ExpectToken(5);
}

TEST_F(RankGroupStages, ALossWhileAFinishedStepWaitsIsToldByTheNextOne) {
  ASSERT_TRUE(Start(2).ok());
  script_->With([](Script* s) { s->steps_to_answer = 1; });
  ASSERT_TRUE(Begin(1).ok());
  ASSERT_TRUE(Begin(2).ok());
  WaitForSteps(2);
  ExpectToken(1);
  hub_->Kill(0);
  ExpectLost(HasSubstr("rank 0"));
}

// Only rank 0 of the last stage answers; another one's word is no answer.
TEST_F(RankGroupStages, ErrorsOfAnyStageEndTheStep) {
  for (const int rank : {0, 1, 3}) {
    script_ = std::make_shared<Script>();
    ASSERT_TRUE(Start(4).ok());
    script_->With([rank](Script* s) {
      s->steps_to_answer = 0;
      s->in_step = {{rank, Unavailable("a neighbour is gone")}};
    });
    ASSERT_TRUE(Begin(1).ok());
    ExpectLost(AllOf(HasSubstr(fmt::format("rank {} ", rank)), HasSubstr("a neighbour is gone")));
    script_->With([](Script* s) { s->steps_to_answer = 100; });
    WaitUntilReady();
    ExpectStepWorks();
    EXPECT_TRUE(observer_.lost().empty());
    group_.reset();
  }
}

TEST_F(RankGroupStages, StepsAfterTheEndAreNotBegun) {
  ASSERT_TRUE(Start(2).ok());
  script_->With([](Script* s) {
    s->steps_to_answer = 0;
    s->in_step = {{0, ResourceExhausted("memory ran out")}};
  });
  ASSERT_TRUE(Begin(1).ok());
  EXPECT_EQ(group_->Finish().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Begin(2).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(RankGroupStages, StagesMayHaveDifferentPolicies) {
  const std::string other = comm::Serialize(
      {.choices = {{.max_bytes = 1000, .algorithm = comm::Algorithm::kOneShot, .codec = {}},
                   {.max_bytes = std::numeric_limits<int64_t>::max(),
                    .algorithm = comm::Algorithm::kTwoShot,
                    .codec = {}}}});
  script_->With([&](Script* s) { s->policy_of = {{2, other}, {3, other}}; });
  ASSERT_TRUE(Start(4).ok());
  EXPECT_EQ(comm::Serialize(group_->policy()), testing::SomePolicy());
  ExpectStepWorks();
  hub_->Kill(0);
  WaitUntilFormed(2);
  ExpectRecovery(::testing::_);
  EXPECT_EQ(script_->policy_told[1], testing::SomePolicy());
  EXPECT_EQ(script_->policy_told[3], other);
}

TEST_F(RankGroupStages, AStageHasOnePolicy) {
  ASSERT_TRUE(Start(4).ok());
  ExpectStepWorks();
  const std::string other =
      comm::Serialize({.choices = {{.max_bytes = std::numeric_limits<int64_t>::max(),
                                    .algorithm = comm::Algorithm::kTwoShot,
                                    .codec = {}}}});
  script_->With([&](Script* s) { s->policy_of = {{2, other}}; });
  hub_->Kill(0);
  {
    std::unique_lock lock(script_->mutex);
    script_->changed.wait(lock, [&] { return std::ranges::count(script_->aborted, 2U) > 0; });
  }
  script_->With([](Script* s) { s->policy_of.clear(); });
  WaitUntilFormed(2);
  ExpectRecovery(::testing::_);
}

// What ranks of two stages of two are at while a step does not get on.
RankActivity Waits(RankPhase phase, uint64_t sent, uint64_t received) {
  return {.changes = 5, .operation = 17, .sent = sent, .received = received, .phase = phase};
}

struct Case {
  const char* what;
  std::map<int, RankActivity> at;
};

TEST_F(RankGroupStages, DeadLinksAreFound) {
  const RankActivity computes = Waits(RankPhase::kComputing, 3, 0);
  const RankActivity idle = Waits(RankPhase::kIdle, 3, 0);
  const RankActivity sums = Waits(RankPhase::kCollective, 0, 3);
  const Case cases[] = {
      // Its message was sent, and never came; the others of its stage wait for it.
      {"rank 3 (pid 401)",
       {{0, idle}, {1, idle}, {2, sums}, {3, Waits(RankPhase::kReceiving, 0, 2)}}},
      // The first stage computes the next step all the while.
      {"for message 3 of rank 0 (pid 101), which has sent it",
       {{0, computes}, {1, computes}, {2, Waits(RankPhase::kReceiving, 0, 2)}, {3, sums}}},
      {"rank 2 (pid 301) in its operation 17, rank 3 (pid 401) in its operation 17",
       {{0, computes}, {1, computes}, {2, sums}, {3, sums}}},
      // Nobody computes, and nobody has sent anything.
      {"rank 2 (pid 301) after 3 messages of the stage before it",
       {{0, idle},
        {1, idle},
        {2, Waits(RankPhase::kReceiving, 0, 3)},
        {3, Waits(RankPhase::kReceiving, 0, 3)}}},
  };
  for (const Case& dead : cases) {
    script_ = std::make_shared<Script>();
    ASSERT_TRUE(Start(4).ok());
    time_->Stop();
    script_->With([&](Script* s) {
      s->hold_steps = true;
      s->at = dead.at;
    });
    ASSERT_TRUE(Begin(1).ok());
    PassUntilBroken();
    ExpectLost(AllOf(HasSubstr(dead.what), HasSubstr("of them answer")));
    script_->With([](Script* s) {
      s->hold_steps = false;
      s->at.clear();
    });
    WaitUntilReady();
    ExpectStepWorks();
    EXPECT_TRUE(observer_.lost().empty());  // nobody is to blame
    group_.reset();
  }
}

TEST_F(RankGroupStages, ASlowStageIsNoDeadLink) {
  const RankActivity computes = Waits(RankPhase::kComputing, 2, 2);
  RankActivity large = Waits(RankPhase::kReceiving, 0, 2);
  large.bytes = 1'000'000'000;
  const RankActivity idle = Waits(RankPhase::kIdle, 3, 0);
  const RankActivity sums = Waits(RankPhase::kCollective, 0, 2);
  const Case cases[] = {
      {"the first stage computes, the second one waits for it",
       {{0, computes},
        {1, computes},
        {2, Waits(RankPhase::kReceiving, 0, 2)},
        {3, Waits(RankPhase::kReceiving, 0, 2)}}},
      {"one rank's message has come, the other one's sender computes",
       {{0, Waits(RankPhase::kSending, 2, 0)},
        {1, computes},
        {2, sums},
        {3, Waits(RankPhase::kReceiving, 0, 2)}}},
      {"the last stage computes, the first one has sent all that it may",
       {{0, Waits(RankPhase::kSending, 2, 0)},
        {1, Waits(RankPhase::kSending, 2, 0)},
        {2, computes},
        {3, sums}}},
      {"a message takes its time", {{0, idle}, {1, idle}, {2, large}, {3, sums}}},
  };
  for (const Case& slow : cases) {
    script_ = std::make_shared<Script>();
    ASSERT_TRUE(Start(4).ok());
    time_->Stop();
    script_->With([&](Script* s) {
      s->steps_to_answer = 0;
      s->at = slow.at;
    });
    ASSERT_TRUE(Begin(1).ok());
    WaitForSteps(1);
    time_->Pass(4 * kTimeout);
    EXPECT_THAT(observer_.broken(), IsEmpty()) << slow.what;
    script_->With([](Script* s) {
      s->at.clear();
      s->steps_to_answer = 100;
    });
    ExpectToken(1);
    group_.reset();
  }
}

ExpertLoad Load(std::vector<uint64_t> tokens) {
  return {.num_layers = Script::kNumLayers, .num_experts = 2, .tokens = std::move(tokens)};
}

class RankGroupLoads : public RankGroupStages {
 protected:
  absl::Status StartWithExperts() {
    script_->With([](Script* s) {
      s->num_experts = 2;
      // Of ranks 0 and 2; the others of a stage are not asked.
      s->loads = {{0, Load({1, 2, 3, 4, 0, 0})}, {2, Load({0, 0, 0, 0, 5, 6})}};
    });
    return Start(4);
  }
  // Steps make new loads worth asking for.
  void WaitForLoad(const std::vector<uint64_t>& tokens) {
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (group_->expert_load().tokens != tokens && std::chrono::steady_clock::now() < patience) {
      ExpectStepWorks();
      std::this_thread::sleep_for(milliseconds(1));
    }
    EXPECT_EQ(group_->expert_load().tokens, tokens);
  }
};

TEST_F(RankGroupLoads, AreAddedOverStages) {
  ASSERT_TRUE(StartWithExperts().ok());
  EXPECT_TRUE(group_->expert_load().empty());
  WaitForLoad({1, 2, 3, 4, 5, 6});
  EXPECT_EQ(group_->expert_load().num_layers, Script::kNumLayers);
  EXPECT_EQ(group_->expert_load().num_experts, 2);
}

TEST_F(RankGroupLoads, OutliveTheirRanks) {
  ASSERT_TRUE(StartWithExperts().ok());
  WaitForLoad({1, 2, 3, 4, 5, 6});
  time_->Stop();
  time_->Pass(milliseconds(0));  // no question is under way
  // The new process of rank 0 has counted one token; rank 2 goes on.
  script_->With([](Script* s) {
    s->loads = {{0, Load({1, 0, 0, 0, 0, 0})}, {2, Load({0, 0, 0, 0, 7, 6})}};
  });
  hub_->Kill(0);
  WaitUntilFormed(2);
  EXPECT_EQ(group_->Execute(SomePlan()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group_->expert_load().tokens, (std::vector<uint64_t>{1, 2, 3, 4, 5, 6}));
  time_->Run();
  WaitUntilReady();
  WaitForLoad({2, 2, 3, 4, 7, 6});
}

TEST_F(RankGroupLoads, OfAnotherShapeAreNonsense) {
  ASSERT_TRUE(StartWithExperts().ok());
  script_->With([](Script* s) {
    s->loads[2] = {.num_layers = 1, .num_experts = 2, .tokens = {1, 2}};
  });
  while (observer_.lost().empty()) {
    (void)group_->Execute(SomePlan());
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_THAT(observer_.lost().at(0).second,
              AllOf(HasSubstr("rank 2 (pid 301)"), HasSubstr("1 layers of 2 experts")));
}

TEST_F(RankGroupLoads, AreAskedForOnlyWhenThereWasAStep) {
  ASSERT_TRUE(StartWithExperts().ok());
  WaitForLoad({1, 2, 3, 4, 5, 6});
  const auto num_questions = [this] {
    uint64_t num = 0;
    script_->With([&num](Script* s) { num = s->num_load_questions; });
    return num;
  };
  // Without steps the questions end. A driver that asks on would ask some 20 times in each look.
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  uint64_t before = 0;
  uint64_t now = num_questions();
  do {
    before = now;
    std::this_thread::sleep_for(milliseconds(100));
    now = num_questions();
  } while (now != before && std::chrono::steady_clock::now() < patience);
  EXPECT_EQ(now, before);
}

TEST_F(RankGroupStages, DenseModelsAreNotAskedForLoads) {
  ASSERT_TRUE(Start(2).ok());
  for (int n = 0; n < 5; ++n) {
    ExpectStepWorks();
    std::this_thread::sleep_for(milliseconds(20));
  }
  script_->With([](Script* s) { EXPECT_EQ(s->num_load_questions, 0U); });
  EXPECT_TRUE(group_->expert_load().empty());
}

TEST_F(RankGroupStages, OptionsThatDoNotFitAreRefused) {
  const auto refusal = [](int num_stages, int expert_size) {
    auto hub = std::make_unique<testing::ThreadHub>(4, [](int, comm::FrameChannel*) {});
    RankGroupOptions options{.node_of_rank = {0, 0, 0, 0}};
    options.num_stages = num_stages;
    options.expert_size = expert_size;
    return std::string(
        RankGroup::Start(std::move(hub), options, {}, nullptr, {}).status().message());
  };
  EXPECT_THAT(refusal(3, 1), HasSubstr("num_stages is 3, must divide the 4 ranks"));
  EXPECT_THAT(refusal(0, 1), HasSubstr("num_stages is 0"));
  EXPECT_THAT(refusal(2, 4), HasSubstr("expert_size is 4, must divide the 2 ranks of a stage"));
}

TEST_F(RankGroupStages, ARankOfAnotherShapeIsRefused) {
  script_->With([](Script* s) { s->num_experts = 0; });
  auto hub = std::make_unique<testing::ThreadHub>(2, [](int rank, comm::FrameChannel* channel) {
    auto script = std::make_shared<Script>();
    testing::ScriptedRank(rank, channel, script).Run();  // of one stage
  });
  RankGroupOptions options{.node_of_rank = {0, 0}, .group_id = "g"};
  options.num_stages = 2;
  options.vocab_size = Script::kVocabSize;
  options.row_size = Script::kRowSize;
  EXPECT_THAT(
      std::string(RankGroup::Start(std::move(hub), options, {}, nullptr, {}).status().message()),
      HasSubstr("is one of 1 stages and 1 expert ranks, want 2 and 1"));
}

}  // namespace
}  // namespace nibble::engine
