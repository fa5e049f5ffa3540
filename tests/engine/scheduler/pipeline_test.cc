// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A scheduler that plans several steps before the first of them is done.

#include <algorithm>
#include <map>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/scheduler/scheduler.h"
#include "tests/engine/scheduler/pipeline_rig.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using testing::Alone;
using testing::ConfigFor;
using testing::Count;
using ::testing::Each;
using ::testing::ElementsAre;
using testing::Ids;
using testing::IdsInFlight;
using ::testing::IsEmpty;
using testing::PipelineRig;
using testing::RandomConfig;
using testing::RandomSpec;
using testing::Spec;

TEST(SchedulerPipelineTest, DecodesAreSpreadOverTheSteps) {
  PipelineRig rig(ConfigFor(2));
  for (RequestId id = 1; id <= 6; ++id) rig.scheduler().Add(Spec(id, Count(3), 20));
  EXPECT_EQ(Ids(rig.Plan()).size(), 6U);  // short prompts are not cut
  EXPECT_TRUE(rig.Plan().empty());        // all await their tokens
  rig.Finish();
  for (int i = 0; i < 4; ++i) {
    EXPECT_THAT(Ids(rig.Plan()), ElementsAre(1, 2, 3));
    if (i > 0) rig.Finish();
    EXPECT_THAT(Ids(rig.Plan()), ElementsAre(4, 5, 6));
    rig.Finish();
  }
}

TEST(SchedulerPipelineTest, FewSequencesGiveEveryStepOne) {
  PipelineRig rig(ConfigFor(3));
  for (RequestId id = 1; id <= 4; ++id) rig.scheduler().Add(Spec(id, Count(3), 20));
  rig.Turn();
  for (int i = 0; i < 6; ++i) {
    rig.Fill();
    std::vector<size_t> sizes;
    for (const auto& ids : IdsInFlight(rig)) sizes.push_back(ids.size());
    std::ranges::sort(sizes);
    EXPECT_THAT(sizes, ElementsAre(1, 1, 2));
    rig.Finish();
  }
}

TEST(SchedulerPipelineTest, StepsAreEvenAgainAfterSequencesEnd) {
  PipelineRig rig(ConfigFor(2));
  for (RequestId id = 1; id <= 6; ++id) {
    rig.scheduler().Add(Spec(id, Count(3), id <= 4 ? 20 : 3));  // 1, 2, 3 and 4 are left
  }
  while (rig.finished().size() < 2) rig.Turn();
  for (int i = 0; i < 3; ++i) rig.Turn();
  rig.Fill();
  ASSERT_TRUE(rig.is_full());
  for (const auto& ids : IdsInFlight(rig)) EXPECT_EQ(ids.size(), 2U);
  rig.RunAll();
  for (RequestId id = 1; id <= 4; ++id) EXPECT_EQ(rig.generated().at(id).size(), 20U);
}

TEST(SchedulerPipelineTest, ALateArrivalTakesTheIdleStep) {
  PipelineRig rig(ConfigFor(2));
  rig.scheduler().Add(Spec(1, Count(3), 20));
  EXPECT_THAT(Ids(rig.Plan()), ElementsAre(1));
  EXPECT_TRUE(rig.Plan().empty());
  rig.scheduler().Add(Spec(2, Count(3), 20));
  EXPECT_THAT(Ids(rig.Plan()), ElementsAre(2));
  rig.RunAll();
  for (RequestId id = 1; id <= 2; ++id) {
    EXPECT_EQ(rig.generated().at(id), Alone(Spec(id, Count(3), 20)));
  }
}

TEST(SchedulerPipelineTest, ChunksOfAPromptAreInFlightBehindEachOther) {
  SchedulerConfig config = ConfigFor(3);
  config.min_share_tokens = 8;
  PipelineRig rig(config);
  const SequenceSpec spec = Spec(1, Count(70), 4);
  rig.scheduler().Add(spec);
  for (int64_t i = 0; i < 3; ++i) {
    const ScheduledStep step = rig.Plan();
    ASSERT_THAT(Ids(step), ElementsAre(1));
    EXPECT_THAT(step.plan.context_lens, ElementsAre(9 * (i + 1)));  // 70 in 8 parts, 61 in 7, ...
    EXPECT_THAT(step.plan.positions.front(), 9 * i);
    EXPECT_THAT(step.plan.sampling, IsEmpty());
  }
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(1), Alone(spec));
}

TEST(SchedulerPipelineTest, PromptsAreCutIntoPartsOfOneSize) {
  SchedulerConfig config = ConfigFor(2);
  config.max_num_batched_tokens = 2048;
  config.max_model_len = 8192;
  config.num_blocks = 3000;
  const auto sizes = [&](int64_t prompt_size) {
    PipelineRig rig(config);
    rig.scheduler().Add(Spec(1, Count(prompt_size), 1));
    std::vector<int64_t> parts;
    while (!rig.scheduler().empty()) {
      const ScheduledStep step = rig.Plan();
      if (!step.empty()) parts.push_back(step.plan.num_tokens());
      if (rig.is_full() || step.empty()) rig.Finish();
    }
    return parts;
  };
  EXPECT_THAT(sizes(255), ElementsAre(255));  // two of less than 128 would cost more than they win
  EXPECT_THAT(sizes(256), ElementsAre(128, 128));
  EXPECT_THAT(sizes(1024), Each(128));
  // The first part is what the other stage waits for: an eighth.
  EXPECT_EQ(sizes(8000).front(), 1000);
  config.max_num_batched_tokens = 200;
  EXPECT_EQ(sizes(8000).front(), 200);
}

TEST(SchedulerPipelineTest, ManyPromptsAreSpreadToo) {
  SchedulerConfig config = ConfigFor(2);
  config.max_num_batched_tokens = 64;
  config.min_share_tokens = 8;
  PipelineRig rig(config);
  for (RequestId id = 1; id <= 8; ++id) rig.scheduler().Add(Spec(id, Count(8), 2));
  EXPECT_THAT(Ids(rig.Plan()), ElementsAre(1));
  EXPECT_THAT(Ids(rig.Plan()), ElementsAre(2));
  rig.RunAll();
}

TEST(SchedulerPipelineTest, WithoutChunkedPrefillPromptsStayWhole) {
  SchedulerConfig config = ConfigFor(2);
  config.max_model_len = 60;
  config.max_num_batched_tokens = 60;
  config.enable_chunked_prefill = false;
  config.min_share_tokens = 8;
  PipelineRig rig(config);
  rig.scheduler().Add(Spec(1, Count(40), 3));
  rig.scheduler().Add(Spec(2, Count(10, 50), 3));
  EXPECT_THAT(rig.Plan().plan.context_lens, ElementsAre(40));
  EXPECT_THAT(rig.Plan().plan.context_lens, ElementsAre(10));
  rig.RunAll();
}

TEST(SchedulerPipelineTest, CopiesOfAPromptShareOnceItIsComputed) {
  PipelineRig rig(ConfigFor(3));
  rig.scheduler().Add(Spec(1, Count(21), 6));
  rig.Plan();
  rig.scheduler().Add(Spec(2, Count(21), 6));
  EXPECT_EQ(rig.Plan().prefix_cache_hits, 0);  // planned is not computed
  rig.Finish();
  rig.scheduler().Add(Spec(3, Count(21), 6));
  EXPECT_EQ(rig.Plan().prefix_cache_hits, 20);
  rig.RunAll();
  for (RequestId id = 1; id <= 3; ++id) {
    EXPECT_EQ(rig.generated().at(id), Alone(Spec(id, Count(21), 6)));
  }
}

// Two sequences that decode in turn, until 1 takes the blocks of 2, whose token is being sampled.
class PreemptionInFlight {
 public:
  explicit PreemptionInFlight(int64_t max_tokens) : rig(MakeConfig()) {
    rig.scheduler().Add(Spec(1, Count(15), 25));
    rig.scheduler().Add(Spec(2, Count(15, 50), max_tokens));
    while (rig.num_preemptions() == 0) {
      if (rig.is_full() || rig.Plan().empty()) rig.Finish();
    }
    EXPECT_THAT(IdsInFlight(rig), ElementsAre(ElementsAre(2), ElementsAre(1)));
    EXPECT_EQ(rig.scheduler().num_waiting(), 1);
    EXPECT_EQ(rig.generated().at(2).size(), 5U);
  }

  PipelineRig rig;

 private:
  static SchedulerConfig MakeConfig() {
    SchedulerConfig config = ConfigFor(2);
    config.num_blocks = 10;
    config.max_model_len = 40;
    return config;
  }
};

TEST(SchedulerPipelineTest, APreemptedSequenceKeepsTheTokenThatIsBeingSampled) {
  PreemptionInFlight preemption(25);
  PipelineRig& rig = preemption.rig;
  rig.Finish();
  EXPECT_EQ(rig.generated().at(2).size(), 6U);
  EXPECT_EQ(rig.scheduler().num_waiting(), 1);
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(1), Alone(Spec(1, Count(15), 25)));
  EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, Count(15, 50), 25)));
}

TEST(SchedulerPipelineTest, APreemptedSequenceIsNotAdmittedBeforeItsToken) {
  SchedulerConfig config = ConfigFor(3);
  config.num_blocks = 10;
  config.max_model_len = 40;
  PipelineRig rig(config);
  rig.scheduler().Add(Spec(1, Count(15), 25));
  rig.scheduler().Add(Spec(2, Count(15, 50), 25));
  while (rig.num_preemptions() == 0) {
    if (rig.in_flight().size() == 2 || rig.Plan().empty()) rig.Finish();
  }
  rig.scheduler().Finish(1);
  EXPECT_EQ(rig.scheduler().pool().num_used(), 0);
  EXPECT_TRUE(rig.Plan().empty());
  rig.Finish();
  EXPECT_THAT(Ids(rig.Plan()), ElementsAre(2));
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, Count(15, 50), 25)));
}

TEST(SchedulerPipelineTest, APreemptedSequenceMayEndWithTheTokenThatIsBeingSampled) {
  PreemptionInFlight preemption(6);
  preemption.rig.Finish();
  EXPECT_EQ(preemption.rig.finished().at(2), FinishReason::kLength);
  EXPECT_EQ(preemption.rig.scheduler().num_waiting(), 0);
  preemption.rig.RunAll();
  EXPECT_EQ(preemption.rig.generated().at(2), Alone(Spec(2, Count(15, 50), 6)));
}

// A chunk of a prompt is in flight, its sequence is preempted, and starts again before the chunk is
// done: that chunk counts for nothing.
TEST(SchedulerPipelineTest, AChunkOfAnEarlierAdmissionIsDropped) {
  SchedulerConfig config = ConfigFor(3);
  config.num_blocks = 11;
  config.max_model_len = 44;
  config.min_share_tokens = 1;
  PipelineRig rig(config);
  rig.scheduler().Add(Spec(1, Count(15), 25));
  while (rig.generated().empty()) rig.Turn();
  rig.scheduler().Add(Spec(2, Count(24, 50), 9));
  while (rig.num_preemptions() == 0) {
    if (rig.is_full() || rig.Plan().empty()) rig.Finish();
  }
  EXPECT_EQ(rig.scheduler().num_waiting(), 1);
  rig.scheduler().Finish(1);
  if (rig.is_full()) rig.Finish();
  const ScheduledStep again = rig.Plan();
  ASSERT_THAT(Ids(again), ElementsAre(2));
  const auto& oldest = rig.in_flight().front().entries;
  const auto stale = std::ranges::find(oldest, RequestId{2}, &ScheduledStep::Entry::id);
  ASSERT_NE(stale, oldest.end());
  EXPECT_LT(stale->admission, again.entries[0].admission);
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, Count(24, 50), 9)));
}

TEST(SchedulerPipelineTest, FinishFreesBlocksForTheNextPlanThoughStepsAreInFlight) {
  SchedulerConfig config = ConfigFor(6);
  config.num_blocks = 10;
  config.max_model_len = 40;
  config.min_share_tokens = 8;
  PipelineRig rig(config);
  rig.scheduler().Add(Spec(1, Count(36), 4));
  rig.Plan();
  rig.Plan();
  EXPECT_TRUE(rig.scheduler().Finish(1));
  EXPECT_EQ(rig.scheduler().pool().num_used(), 0);
  rig.scheduler().Add(Spec(2, Count(36, 50), 4));
  rig.Fill();
  std::map<RequestId, std::set<int32_t>> slots;
  for (const ScheduledStep& step : rig.in_flight()) {
    slots[Ids(step).front()].insert(step.plan.slot_mapping.begin(), step.plan.slot_mapping.end());
  }
  EXPECT_EQ(slots[1].size(), 18U);
  EXPECT_EQ(slots[2].size(), 36U);
  EXPECT_GT(std::ranges::count_if(slots[1], [&](int32_t slot) { return slots[2].contains(slot); }),
            0);
  rig.RunAll();
  EXPECT_FALSE(rig.generated().contains(1));
  EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, Count(36, 50), 4)));
}

TEST(SchedulerPipelineTest, ALossTakesAllStepsInFlight) {
  SchedulerConfig config = ConfigFor(3);
  config.min_share_tokens = 8;
  PipelineRig rig(config);
  std::vector<SequenceSpec> specs = {Spec(1, Count(5), 12), Spec(2, Count(6, 50), 12),
                                     Spec(3, Count(60, 90), 6)};
  for (const SequenceSpec& spec : specs) rig.scheduler().Add(spec);
  for (int i = 0; i < 40; ++i) {
    rig.Fill();
    if (i % 4 == 3) {
      rig.Lose();
    } else if (!rig.in_flight().empty()) {
      rig.Finish();
    }
  }
  rig.RunAll();
  for (const SequenceSpec& spec : specs) {
    EXPECT_EQ(rig.generated().at(spec.id), Alone(spec)) << "request " << spec.id;
  }
}

TEST(SchedulerPipelineTest, ARowWithoutAFiniteLogitEndsItsSequenceOnly) {
  Scheduler scheduler(ConfigFor(2));
  scheduler.Add(Spec(1, Count(9), 4));
  const ScheduledStep first = scheduler.Plan();
  scheduler.Add(Spec(2, Count(9, 50), 4));
  const ScheduledStep second = scheduler.Plan();
  const auto updates = scheduler.Update(first, {.tokens = {{.no_finite_logit = true}}});
  ASSERT_EQ(updates.size(), 1U);
  EXPECT_EQ(updates[0].finish_reason, FinishReason::kError);
  EXPECT_EQ(scheduler.Update(second, {.tokens = {{.token_id = 7}}}).size(), 1U);
  scheduler.CheckInvariants();
  EXPECT_EQ(scheduler.num_running(), 1);
}

TEST(SchedulerPipelineDeathTest, MisuseIsFound) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Scheduler scheduler(ConfigFor(2));
  scheduler.Add(Spec(1, Count(9), 4));
  scheduler.Plan();
  scheduler.Add(Spec(2, Count(9, 50), 4));
  const ScheduledStep second = scheduler.Plan();
  EXPECT_DEATH(scheduler.Plan(), "num_steps_in_flight_");
  EXPECT_DEATH(scheduler.Update(second, {.tokens = {{.token_id = 7}}}), "step.number");
}

// What random operations met, so that the test is seen to reach what it is for.
struct Met {
  int64_t preemptions = 0;
  int64_t chunks_behind = 0;  // of a prompt, in flight behind another one
  int64_t full = 0;
};

void RunRandomLoad(uint32_t seed, Met* met) {
  testing::Random random(seed);
  SchedulerConfig config = RandomConfig(&random);
  config.max_steps_in_flight = random.Int(1, 4);
  config.min_share_tokens = random.Int(1, 16);
  PipelineRig rig(config);
  std::map<RequestId, SequenceSpec> specs;
  std::set<RequestId> cancelled;
  for (RequestId id = 1; id <= 60; ++id) {
    specs[id] = RandomSpec(&random, id);
    rig.scheduler().Add(specs[id]);
    for (int64_t n = random.Int(0, 10); n > 0; --n) {
      if (!rig.is_full() && random.Int(0, 2) != 0) {
        rig.Plan();
      } else if (!rig.in_flight().empty()) {
        rig.Finish();
      }
      met->full += rig.is_full() ? 1 : 0;
      std::set<RequestId> seen;
      for (const auto& ids : IdsInFlight(rig)) {
        for (const RequestId in_flight : ids) {
          met->chunks_behind += seen.insert(in_flight).second ? 0 : 1;
        }
      }
    }
    if (random.Int(0, 5) == 0) {
      const auto victim = static_cast<RequestId>(random.Int(1, int64_t(id)));
      if (rig.scheduler().Finish(victim)) cancelled.insert(victim);
      rig.scheduler().CheckInvariants();
    }
    if (random.Int(0, 14) == 0) rig.Lose();
  }
  rig.RunAll();
  met->preemptions += rig.num_preemptions();
  for (const auto& [id, spec] : specs) {
    if (cancelled.contains(id)) continue;
    ASSERT_EQ(rig.generated().at(id), Alone(spec)) << "seed " << seed << ", request " << id;
  }
}

TEST(SchedulerPipelineTest, RandomLoadNeverChangesATokenOrLosesABlock) {
  Met met;
  for (uint32_t seed = 0; seed < 24 && !::testing::Test::HasFatalFailure(); ++seed) {
    RunRandomLoad(seed, &met);
  }
  EXPECT_GT(met.preemptions, 20);
  EXPECT_GT(met.chunks_behind, 20);
  EXPECT_GT(met.full, 100);
}

}  // namespace
}  // namespace nibble::engine
