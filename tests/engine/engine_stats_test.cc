// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What an EngineObserver is told, by a clock that moves 1 ms per step.

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/engine_rig.h"

namespace nibble::engine {
namespace {

using testing::Count;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using testing::EngineRig;
using ::testing::IsEmpty;

constexpr double kMs = 1e-3;
constexpr double kTiny = 1e-9;

TEST(EngineStatsTest, TimesOfARequestComeFromTheClock) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) { config->max_num_seqs = 1; });
  rig.device().CloseGate();
  const SamplingParams sampling{.max_tokens = 3, .ignore_eos = true};
  const auto first = rig.Submit(Count(5), sampling);
  rig.device().WaitForSteps(1);
  const auto second = rig.Submit(Count(9, 100), sampling);  // waits for three steps
  rig.device().OpenGate();
  first->WaitForEnd();
  second->WaitForEnd();
  ASSERT_TRUE(rig.engine().Drain(1'000'000'000).ok());

  const auto steps = rig.observer().steps();
  ASSERT_EQ(steps.size(), 6U);
  for (const StepStats& step : steps) {
    EXPECT_NEAR(step.step_seconds, kMs, kTiny);
    EXPECT_EQ(step.num_generated_tokens, 1);
    EXPECT_EQ(step.engine.kv_blocks_total, 100);
  }
  EXPECT_EQ(steps[0].num_prompt_tokens, 5);
  EXPECT_EQ(steps[1].num_prompt_tokens, 0);
  EXPECT_EQ(steps[3].num_prompt_tokens, 9);
  EXPECT_EQ(steps[0].num_prefilled_tokens, 5);
  EXPECT_EQ(steps[1].num_prefilled_tokens, 0);
  EXPECT_EQ(steps[3].num_prefilled_tokens, 9);
  EXPECT_EQ(steps[0].engine.num_running, 1);
  EXPECT_EQ(steps[0].engine.kv_blocks_used, 2);
  EXPECT_EQ(steps[5].engine.num_running, 0);
  EXPECT_EQ(steps[5].engine.num_steps, 6);
  EXPECT_THAT(steps[0].time_to_first_token_seconds, ElementsAre(DoubleNear(kMs, kTiny)));
  EXPECT_THAT(steps[0].inter_token_seconds, IsEmpty());
  EXPECT_THAT(steps[1].inter_token_seconds, ElementsAre(DoubleNear(kMs, kTiny)));
  EXPECT_THAT(steps[1].time_to_first_token_seconds, IsEmpty());
  EXPECT_THAT(steps[3].time_to_first_token_seconds, ElementsAre(DoubleNear(4 * kMs, kTiny)));

  const auto finished = rig.observer().finished();
  ASSERT_EQ(finished.size(), 2U);
  EXPECT_EQ(finished[0].reason, FinishReason::kLength);
  EXPECT_EQ(finished[0].num_prompt_tokens, 5);
  EXPECT_EQ(finished[0].num_generated_tokens, 3);
  EXPECT_EQ(finished[0].max_tokens, 3);
  EXPECT_NEAR(finished[0].queue_seconds, 0.0, kTiny);
  EXPECT_NEAR(finished[1].queue_seconds, 3 * kMs, kTiny);
  for (const FinishedRequestStats& stats : finished) {
    EXPECT_NEAR(stats.prefill_seconds, kMs, kTiny);
    EXPECT_NEAR(stats.decode_seconds, 2 * kMs, kTiny);
    EXPECT_NEAR(stats.inference_seconds, 3 * kMs, kTiny);
    EXPECT_GE(stats.e2e_seconds, stats.queue_seconds + stats.inference_seconds - kTiny);
  }
}

TEST(EngineStatsTest, PrefixHitsAndPreemptionsAreCounted) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits* limits) {
    limits->num_blocks = 16;
    config->max_num_seqs = 2;
  });
  const SamplingParams sampling{.max_tokens = 30, .ignore_eos = true};
  rig.Submit(Count(13), sampling)->WaitForEnd();
  const RequestOutput again = rig.Submit(Count(13), {.max_tokens = 1})->WaitForEnd();
  EXPECT_EQ(again.num_cached_tokens, 12);
  const auto one = rig.Submit(Count(13, 50), sampling);
  const auto two = rig.Submit(Count(13, 90), sampling);  // 22 blocks for both
  one->WaitForEnd();
  two->WaitForEnd();
  ASSERT_TRUE(rig.engine().Drain(1'000'000'000).ok());
  int64_t num_preemptions = 0;
  int64_t queries = 0;
  int64_t hits = 0;
  int64_t computed = 0;
  int64_t prefilled = 0;
  int64_t prefilled_cached = 0;
  for (const StepStats& step : rig.observer().steps()) {
    computed += step.num_prompt_tokens;
    prefilled += step.num_prefilled_tokens;
    prefilled_cached += step.num_prefilled_cached_tokens;
    num_preemptions += step.num_preemptions;
    queries += step.prefix_cache_queries;
    hits += step.prefix_cache_hits;
  }
  EXPECT_GE(num_preemptions, 1);
  EXPECT_EQ(queries, 4 * 13);
  EXPECT_EQ(hits, 12);
  // Every prompt once, cached part included.
  EXPECT_EQ(prefilled, 4 * 13);
  EXPECT_EQ(prefilled_cached, 12);
  EXPECT_GE(computed, prefilled - prefilled_cached);
  EXPECT_EQ(rig.observer().finished()[1].num_cached_tokens, 12);
}

TEST(EngineStatsTest, ARecomputedPromptCountsOnce) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits* limits) {
    limits->num_blocks = 16;
    config->max_num_seqs = 2;
    config->enable_prefix_caching = false;
  });
  const SamplingParams sampling{.max_tokens = 30, .ignore_eos = true};
  const auto one = rig.Submit(Count(13, 50), sampling);
  const auto two = rig.Submit(Count(13, 90), sampling);  // 22 blocks for both
  one->WaitForEnd();
  two->WaitForEnd();
  ASSERT_TRUE(rig.engine().Drain(1'000'000'000).ok());
  int64_t computed = 0;
  int64_t prefilled = 0;
  for (const StepStats& step : rig.observer().steps()) {
    computed += step.num_prompt_tokens;
    prefilled += step.num_prefilled_tokens;
  }
  EXPECT_EQ(prefilled, 2 * 13);
  EXPECT_GT(computed, prefilled);
}

TEST(EngineStatsTest, APromptCountsWhenItsLastChunkIsComputed) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) { config->max_num_batched_tokens = 16; });
  rig.Submit(Count(40), {.max_tokens = 1})->WaitForEnd();
  ASSERT_TRUE(rig.engine().Drain(1'000'000'000).ok());
  std::vector<int64_t> computed;
  std::vector<int64_t> prefilled;
  for (const StepStats& step : rig.observer().steps()) {
    computed.push_back(step.num_prompt_tokens);
    prefilled.push_back(step.num_prefilled_tokens);
  }
  EXPECT_THAT(computed, ElementsAre(16, 16, 8));
  EXPECT_THAT(prefilled, ElementsAre(0, 0, 40));
}

TEST(EngineStatsTest, ARequestThatNeverRanOnlyQueued) {
  EngineRig rig([](EngineConfig* config, ExecutorLimits*) { config->max_num_seqs = 1; });
  rig.device().CloseGate();
  rig.Submit(Count(3), {.max_tokens = 1});
  rig.device().WaitForSteps(1);
  RequestId id = 0;
  const auto waiting = rig.Submit(Count(3), {}, 0, &id);
  rig.engine().Cancel(id);
  rig.device().OpenGate();
  waiting->WaitForEnd();
  ASSERT_TRUE(rig.engine().Drain(1'000'000'000).ok());
  for (const FinishedRequestStats& stats : rig.observer().finished()) {
    if (stats.reason != FinishReason::kAbort) continue;
    EXPECT_NEAR(stats.queue_seconds, kMs, kTiny);
    EXPECT_EQ(stats.prefill_seconds, 0.0);
    EXPECT_EQ(stats.inference_seconds, 0.0);
    EXPECT_EQ(stats.num_generated_tokens, 0);
  }
  EXPECT_EQ(rig.observer().finished().size(), 2U);
}

}  // namespace
}  // namespace nibble::engine
