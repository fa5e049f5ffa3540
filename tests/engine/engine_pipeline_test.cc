// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// An engine whose executor takes several steps at once. The device's gate holds them all.

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/engine_rig.h"

namespace nibble::engine {
namespace {

using testing::Count;
using ::testing::ElementsAre;
using testing::EngineRig;
using testing::FakeSink;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kSecond = 1'000'000'000;

void ShortSteps(EngineConfig* config, ExecutorLimits*) {
  config->max_num_seqs = 4;
  config->max_num_batched_tokens = 8;
}

SamplingParams Tokens(int64_t count, uint64_t seed = 7) {
  return {.max_tokens = count, .seed = seed, .ignore_eos = true};
}

std::vector<int32_t> Alone(std::vector<int32_t> prompt, const SamplingParams& sampling) {
  EngineRig rig;
  const auto sink = rig.Submit(std::move(prompt), sampling);
  sink->WaitForEnd();
  return sink->token_ids();
}

TEST(EnginePipelineTest, AnArrivalIsBegunWhileAStepIsUnderWay) {
  EngineRig rig({}, 3);
  rig.device().CloseGate();
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    sinks.push_back(rig.Submit(Count(5 + i), Tokens(9)));
    rig.device().WaitForSteps(i + 1);  // nothing else wakes the loop
  }
  sinks.push_back(rig.Submit(Count(8), Tokens(9)));  // a fourth step is not taken
  rig.device().OpenGate();
  for (int i = 0; i < 4; ++i) {
    sinks[size_t(i)]->WaitForEnd();
    EXPECT_EQ(sinks[size_t(i)]->token_ids(), Alone(Count(5 + i), Tokens(9)));
  }
  EXPECT_EQ(rig.device().max_in_flight, 3);
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, AStepThatIsDoneWakesALoopWithNothingToPlan) {
  EngineRig rig({}, 3);
  const auto sink = rig.Submit(Count(5), Tokens(40));
  EXPECT_EQ(sink->WaitForEnd().num_generated_tokens, 40);
  EXPECT_EQ(sink->token_ids(), Alone(Count(5), Tokens(40)));
  EXPECT_EQ(rig.device().max_in_flight, 1);
  ASSERT_TRUE(rig.engine().Drain(60 * kSecond).ok());
  EXPECT_EQ(rig.engine().Stats().num_steps, 40);
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, ChunksOfAPromptAreUnderWayBehindEachOther) {
  EngineRig rig(ShortSteps, 3);
  rig.device().CloseGate();
  const auto sink = rig.Submit(Count(30), Tokens(3));
  rig.device().WaitForSteps(3);
  rig.device().OpenGate();
  sink->WaitForEnd();
  EXPECT_EQ(sink->token_ids(), Alone(Count(30), Tokens(3)));
  ASSERT_TRUE(rig.engine().Drain(60 * kSecond).ok());
  std::vector<int64_t> computed;
  for (const StepStats& step : rig.observer().steps()) computed.push_back(step.num_prompt_tokens);
  EXPECT_THAT(computed, ElementsAre(8, 8, 8, 6, 0, 0));
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, ACancelledRequestEndsThoughItsStepIsUnderWay) {
  EngineRig rig({}, 2);
  rig.device().CloseGate();
  RequestId id = 0;
  const auto cancelled = rig.Submit(Count(5), Tokens(9), 0, &id);
  rig.device().WaitForSteps(1);
  rig.engine().Cancel(id);
  EXPECT_EQ(cancelled->WaitForEnd().finish_reason, FinishReason::kAbort);  // the gate is closed
  EXPECT_THAT(cancelled->token_ids(), IsEmpty());
  EXPECT_EQ(rig.engine().Stats().kv_blocks_used, 0);
  const auto other = rig.Submit(Count(6), Tokens(9));  // takes the blocks
  rig.device().WaitForSteps(2);
  rig.device().OpenGate();
  other->WaitForEnd();
  EXPECT_EQ(other->token_ids(), Alone(Count(6), Tokens(9)));
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, CancelWaitsForTheOldestWhenNoMoreStepsAreTaken) {
  EngineRig rig({}, 2);
  rig.device().CloseGate();
  RequestId id = 0;
  const auto cancelled = rig.Submit(Count(5), Tokens(9), 0, &id);
  rig.device().WaitForSteps(1);
  const auto other = rig.Submit(Count(6), Tokens(9));
  rig.device().WaitForSteps(2);
  rig.engine().Cancel(id);
  rig.device().OpenGate();
  EXPECT_EQ(cancelled->WaitForEnd().finish_reason, FinishReason::kAbort);
  EXPECT_EQ(cancelled->token_ids().size(), 1U);
  other->WaitForEnd();
  EXPECT_EQ(other->token_ids(), Alone(Count(6), Tokens(9)));
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, AStopStringEndsTheSequenceThoughStepsAreUnderWay) {
  const std::vector<int32_t> whole = Alone(Count(3), Tokens(20, 3));
  EngineRig rig({}, 3);
  std::vector<std::shared_ptr<FakeSink>> others;
  for (int i = 0; i < 5; ++i) others.push_back(rig.Submit(Count(4 + i), Tokens(30)));
  SamplingParams stopped = Tokens(20, 3);
  stopped.stop = {" " + std::to_string(whole[4]) + " "};
  const auto sink = rig.Submit(Count(3), stopped);
  EXPECT_EQ(sink->WaitForEnd().finish_reason, FinishReason::kStop);
  EXPECT_THAT(sink->token_ids(), ElementsAre(whole[0], whole[1], whole[2], whole[3], whole[4]));
  for (int i = 0; i < 5; ++i) {
    others[size_t(i)]->WaitForEnd();
    EXPECT_EQ(others[size_t(i)]->token_ids(), Alone(Count(4 + i), Tokens(30)));
  }
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, ARowWithoutAFiniteLogitEndsItsRequestOnly) {
  EngineRig rig({}, 3);
  rig.device().nan_at_step = 1;
  rig.device().CloseGate();
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    sinks.push_back(rig.Submit(Count(5 + i), Tokens(9)));
    rig.device().WaitForSteps(i + 1);
  }
  rig.device().OpenGate();
  EXPECT_EQ(sinks[1]->WaitForEnd().finish_reason, FinishReason::kError);
  for (const int i : {0, 2}) {
    sinks[size_t(i)]->WaitForEnd();
    EXPECT_EQ(sinks[size_t(i)]->token_ids(), Alone(Count(5 + i), Tokens(9)));
  }
  EXPECT_TRUE(rig.engine().Health().ok());
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, StopHandsOutTheTokensOfTheStepsUnderWay) {
  EngineRig rig({}, 2);
  rig.device().CloseGate();
  const auto first = rig.Submit(Count(5), Tokens(9));
  rig.device().WaitForSteps(1);
  const auto second = rig.Submit(Count(6), Tokens(1));
  rig.device().WaitForSteps(2);
  std::thread stopper([&] { rig.engine().Stop(); });
  // Other refusals, as of a full queue, do not say that it has begun to stop.
  while (!absl::IsUnavailable(rig.engine().Submit({rig.Request(Count(3), Tokens(1))}).status())) {
    std::this_thread::yield();
  }
  rig.device().OpenGate();
  stopper.join();
  EXPECT_EQ(first->WaitForEnd().finish_reason, FinishReason::kAbort);
  EXPECT_GE(first->token_ids().size(), 1U);
  EXPECT_EQ(second->WaitForEnd().finish_reason, FinishReason::kLength);
  rig.ExpectIdle();
}

// A step that could not be begun takes those under way with it, though none of them failed.
TEST(EnginePipelineTest, AStepThatIsNotBegunBeginsAnOutage) {
  EngineRig rig({}, 3);
  {
    const std::lock_guard lock(rig.device().mutex);
    rig.device().lose_at_begins = {2};
    rig.device().polls_to_ready = -1;
  }
  rig.device().CloseGate();
  std::vector<std::shared_ptr<FakeSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    sinks.push_back(rig.Submit(Count(5 + i), Tokens(9)));
    rig.device().WaitForSteps(i + 1);
  }
  rig.device().WaitForPolls(1);  // the gate is closed still
  EXPECT_EQ(rig.engine().Health().code(), absl::StatusCode::kUnavailable);
  const EngineStats stats = rig.engine().Stats();
  EXPECT_EQ(stats.num_outages, 1);
  EXPECT_EQ(stats.num_lost_sequences, 0);  // no step of theirs was done
  EXPECT_EQ(stats.num_waiting, 3);
  EXPECT_EQ(stats.kv_blocks_used, 0);
  rig.device().OpenGate();
  rig.device().ComeBack();
  for (int i = 0; i < 3; ++i) {
    sinks[size_t(i)]->WaitForEnd();
    EXPECT_EQ(sinks[size_t(i)]->token_ids(), Alone(Count(5 + i), Tokens(9)));
  }
  EXPECT_TRUE(rig.engine().Health().ok());
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, CountsOfLostStepsAreTold) {
  EngineRig rig(ShortSteps, 3);
  rig.device().CloseGate();
  {
    const std::lock_guard lock(rig.device().mutex);
    rig.device().lose_at_steps = {0};
    rig.device().polls_to_ready = 1;
  }
  const auto one = rig.Submit(Count(5), Tokens(2));
  rig.device().WaitForSteps(1);
  const auto two = rig.Submit(Count(20), Tokens(2));
  rig.device().WaitForSteps(3);
  rig.device().OpenGate();
  one->WaitForEnd();
  two->WaitForEnd();
  ASSERT_TRUE(rig.engine().Drain(60 * kSecond).ok());
  int64_t queries = 0;
  int64_t prefilled = 0;
  for (const StepStats& step : rig.observer().steps()) {
    queries += step.prefix_cache_queries;
    prefilled += step.num_prefilled_tokens;
  }
  EXPECT_EQ(queries, 25);
  EXPECT_EQ(prefilled, 25);
  EXPECT_EQ(rig.engine().Stats().num_steps, static_cast<int64_t>(rig.observer().steps().size()));
  rig.ExpectIdle();
}

TEST(EnginePipelineTest, AnExecutorThatTakesNoStepsIsRefused) {
  EXPECT_THAT(EngineRig::CreateError({}, 0),
              HasSubstr("max_steps_in_flight of the executor is 0, must be in [1, 1024]"));
}

}  // namespace
}  // namespace nibble::engine
