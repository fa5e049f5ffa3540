// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/scheduler/scheduler.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/scheduler/fake_model.h"
#include "tests/engine/scheduler/sequences.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using testing::Config;
using testing::Count;
using ::testing::ElementsAre;
using testing::Ids;
using ::testing::IsEmpty;
using testing::kVocabSize;
using testing::RandomConfig;
using testing::RandomSpec;
using testing::Spec;
using testing::Tokens;

// A scheduler with the fake model behind it.
class Rig {
 public:
  explicit Rig(const SchedulerConfig& config)
      : config_(config),
        scheduler_(config),
        model_(config.num_blocks, config.block_size, kVocabSize) {}

  Scheduler& scheduler() { return scheduler_; }
  const std::map<RequestId, Tokens>& generated() const { return generated_; }
  const std::map<RequestId, FinishReason>& finished() const { return finished_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t prefix_cache_hits() const { return prefix_cache_hits_; }

  ScheduledStep Step() {
    ScheduledStep step = scheduler_.Plan();
    scheduler_.CheckInvariants();
    EXPECT_LE(step.plan.num_tokens(), config_.max_num_batched_tokens);
    EXPECT_LE(step.plan.num_seqs(), config_.max_num_seqs);
    EXPECT_EQ(step.empty(), scheduler_.empty());
    if (step.empty()) return step;
    for (const TokenUpdate& update : scheduler_.Update(step, model_.Run(step.plan))) {
      generated_[update.id].push_back(update.token_id);
      if (update.finish_reason) finished_[update.id] = *update.finish_reason;
    }
    num_preemptions_ += step.num_preemptions;
    prefix_cache_hits_ += step.prefix_cache_hits;
    scheduler_.CheckInvariants();
    return step;
  }

  void RunAll() {
    for (int i = 0; !scheduler_.empty(); ++i) {
      ASSERT_LT(i, 10000) << "no progress";
      Step();
    }
    EXPECT_EQ(scheduler_.pool().num_used(), 0);
  }

 private:
  SchedulerConfig config_;
  Scheduler scheduler_;
  testing::FakeModel model_;
  std::map<RequestId, Tokens> generated_;
  std::map<RequestId, FinishReason> finished_;
  int64_t num_preemptions_ = 0;
  int64_t prefix_cache_hits_ = 0;
};

// What a request gets when it is alone in a roomy engine.
Tokens Alone(const SequenceSpec& spec) {
  SchedulerConfig config = Config();
  config.num_blocks = 1000;
  config.max_num_batched_tokens = 1000;
  config.enable_prefix_caching = false;
  Rig rig(config);
  rig.scheduler().Add(spec);
  rig.RunAll();
  return rig.generated().at(spec.id);
}

TEST(SchedulerTest, LateArrivalsJoinTheRunningBatch) {
  Rig rig(Config());
  rig.scheduler().Add(Spec(1, Count(5), 20));
  EXPECT_THAT(Ids(rig.Step()), ElementsAre(1));
  EXPECT_THAT(Ids(rig.Step()), ElementsAre(1));
  rig.scheduler().Add(Spec(2, Count(6, 50), 2));
  const ScheduledStep joined = rig.Step();
  EXPECT_THAT(Ids(joined), ElementsAre(1, 2));
  EXPECT_THAT(joined.plan.query_start, ElementsAre(0, 1, 7));
  EXPECT_THAT(Ids(rig.Step()), ElementsAre(1, 2));
  EXPECT_THAT(Ids(rig.Step()), ElementsAre(1));  // 2 had its two tokens and left
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(1), Alone(Spec(1, Count(5), 20)));
  EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, Count(6, 50), 2)));
}

TEST(SchedulerTest, LongPromptsAreComputedInChunksBesideDecodes) {
  SchedulerConfig config = Config();
  config.max_num_batched_tokens = 10;
  Rig rig(config);
  rig.scheduler().Add(Spec(1, Count(3), 20));
  rig.Step();
  rig.scheduler().Add(Spec(2, Count(25, 50), 4));
  std::vector<int64_t> chunk_sizes;
  for (int i = 0; i < 3; ++i) {
    const ScheduledStep step = rig.Step();
    ASSERT_THAT(Ids(step), ElementsAre(1, 2));
    EXPECT_EQ(step.entries[0].num_tokens, 1);
    EXPECT_EQ(step.entries[1].samples, i == 2);
    chunk_sizes.push_back(step.entries[1].num_tokens);
  }
  EXPECT_THAT(chunk_sizes, ElementsAre(9, 9, 7));
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, Count(25, 50), 4)));
}

TEST(SchedulerTest, WithoutChunkedPrefillAPromptWaitsForAStepThatHoldsIt) {
  SchedulerConfig config = Config();
  config.max_model_len = 30;
  config.max_num_batched_tokens = 30;
  config.enable_chunked_prefill = false;
  Rig rig(config);
  rig.scheduler().Add(Spec(1, Count(20), 3));
  rig.scheduler().Add(Spec(2, Count(25, 50), 3));
  rig.scheduler().Add(Spec(3, Count(2, 90), 3));  // would fit beside 1, but nobody overtakes
  EXPECT_THAT(Ids(rig.Step()), ElementsAre(1));
  const ScheduledStep second = rig.Step();
  EXPECT_THAT(Ids(second), ElementsAre(1, 2, 3));
  EXPECT_THAT(second.plan.context_lens, ElementsAre(21, 25, 2));
  rig.RunAll();
}

TEST(SchedulerTest, PriorityThenArrivalDecidesWhoIsServed) {
  SchedulerConfig config = Config();
  config.max_num_seqs = 1;
  Rig rig(config);
  rig.scheduler().Add(Spec(1, Count(3), 1, 5));
  rig.scheduler().Add(Spec(2, Count(3), 1, 5));
  rig.scheduler().Add(Spec(3, Count(3), 1, -1));
  rig.scheduler().Add(Spec(4, Count(3), 1, 0));
  for (const RequestId id : {3U, 4U, 1U, 2U}) EXPECT_THAT(Ids(rig.Step()), ElementsAre(id));
  EXPECT_TRUE(rig.scheduler().empty());
}

TEST(SchedulerTest, TheLastInOrderIsPreemptedAndGetsTheSameTokens) {
  SchedulerConfig config = Config();
  config.num_blocks = 12;
  config.max_model_len = 40;
  for (const bool prefix_caching : {false, true}) {
    config.enable_prefix_caching = prefix_caching;
    Rig rig(config);
    rig.scheduler().Add(Spec(1, Count(7), 25, 1));
    rig.scheduler().Add(Spec(2, Count(7, 50), 25, 0));
    rig.scheduler().Add(Spec(3, Count(7, 90), 25, 0));
    // 1 came first but has the least priority: it goes.
    while (rig.num_preemptions() == 0) rig.Step();
    EXPECT_EQ(rig.scheduler().num_waiting(), 1);
    EXPECT_THAT(Ids(rig.Step()), ElementsAre(2, 3));
    rig.RunAll();
    EXPECT_GE(rig.num_preemptions(), 1);
    EXPECT_EQ(rig.generated().at(1), Alone(Spec(1, Count(7), 25)));
    EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, Count(7, 50), 25)));
    EXPECT_EQ(rig.generated().at(3), Alone(Spec(3, Count(7, 90), 25)));
  }
}

TEST(SchedulerTest, APreemptedSequenceGoesBeforeLaterArrivals) {
  SchedulerConfig config = Config();
  config.num_blocks = 10;
  config.max_model_len = 40;
  Rig rig(config);
  rig.scheduler().Add(Spec(1, Count(15), 25));
  rig.scheduler().Add(Spec(2, Count(15, 50), 25));
  rig.Step();
  rig.scheduler().Add(Spec(3, Count(15, 90), 2));
  while (rig.num_preemptions() == 0) rig.Step();
  while (rig.generated().at(1).size() < 25) EXPECT_THAT(Ids(rig.Step()), ElementsAre(1));
  EXPECT_EQ(Ids(rig.Step()).front(), 2U);
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, Count(15, 50), 25)));
}

TEST(SchedulerTest, ASharedPrefixIsComputedOnceAndChangesNoToken) {
  Rig rig(Config());
  const Tokens prompt = Count(21);
  rig.scheduler().Add(Spec(1, prompt, 6));
  rig.RunAll();
  EXPECT_EQ(rig.prefix_cache_hits(), 0);

  rig.scheduler().Add(Spec(2, prompt, 6));
  const ScheduledStep step = rig.Step();
  EXPECT_EQ(step.prefix_cache_queries, 21);
  EXPECT_EQ(step.prefix_cache_hits, 20);
  ASSERT_EQ(step.first_time.size(), 1U);
  EXPECT_EQ(step.first_time[0].num_cached_tokens, 20);
  EXPECT_THAT(step.plan.positions, ElementsAre(20));
  EXPECT_THAT(step.plan.context_lens, ElementsAre(21));
  EXPECT_EQ(step.num_prompt_tokens, 1);
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(2), Alone(Spec(2, prompt, 6)));

  // A whole number of blocks: the last block is computed again, for its logits.
  rig.scheduler().Add(Spec(3, Count(20), 2));
  EXPECT_EQ(rig.Step().prefix_cache_hits, 16);
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(3), Alone(Spec(3, Count(20), 2)));

  // Generated tokens are cached as well: a chat's next turn.
  Tokens next_turn = prompt;
  const Tokens& answer = rig.generated().at(1);
  next_turn.insert(next_turn.end(), answer.begin(), answer.end());
  rig.scheduler().Add(Spec(4, next_turn, 2));
  EXPECT_EQ(rig.Step().prefix_cache_hits, 24);
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(4), Alone(Spec(4, next_turn, 2)));
}

TEST(SchedulerTest, SequencesEndForTheRightReason) {
  const Tokens tokens = Alone(Spec(1, Count(5), 40));
  SchedulerConfig config = Config();
  config.eos_token_ids = {tokens[7]};
  Scheduler scheduler(config);
  const auto run = [&](const SamplingParams& sampling) {
    scheduler.Add({.id = 1, .prompt_token_ids = Count(5), .sampling = sampling, .seed = 1000});
    TokenUpdate last;
    int64_t count = 0;
    while (!scheduler.empty()) {
      const ScheduledStep step = scheduler.Plan();
      StepOutput output;
      for (size_t i = 0; i < step.plan.sampling.size(); ++i) {
        output.tokens.push_back(
            {.token_id = tokens[static_cast<size_t>(step.plan.sampling[i].output_index)]});
      }
      for (TokenUpdate& update : scheduler.Update(step, output)) {
        last = update;
        ++count;
      }
    }
    return std::make_pair(count, last);
  };

  auto [count, last] = run({.max_tokens = 40});
  EXPECT_EQ(count, 8);
  EXPECT_EQ(last.finish_reason, FinishReason::kStop);
  EXPECT_TRUE(last.is_stop_token);
  EXPECT_TRUE(std::holds_alternative<std::monostate>(last.stop_reason));

  std::tie(count, last) = run({.max_tokens = 40, .stop_token_ids = {tokens[3]}});
  EXPECT_EQ(count, 4);
  EXPECT_EQ(std::get<int32_t>(last.stop_reason), tokens[3]);

  std::tie(count, last) = run({.max_tokens = 40, .ignore_eos = true});
  EXPECT_EQ(count, 40);
  EXPECT_EQ(last.finish_reason, FinishReason::kLength);
  EXPECT_FALSE(last.is_stop_token);

  std::tie(count, last) = run({.max_tokens = 8});  // the last allowed token is also the end
  EXPECT_EQ(last.finish_reason, FinishReason::kStop);

  // An executor that samples a banned token all the same does not end the sequence.
  std::tie(count, last) = run({.max_tokens = 40, .min_tokens = 8});
  EXPECT_EQ(count, 40);
  std::tie(count, last) = run({.max_tokens = 40, .min_tokens = 7});
  EXPECT_EQ(count, 8);
}

TEST(SchedulerTest, TheContextEndsASequence) {
  SchedulerConfig config = Config();
  config.max_model_len = 12;
  Rig rig(config);
  rig.scheduler().Add(Spec(1, Count(8), 4));
  rig.RunAll();
  EXPECT_EQ(rig.generated().at(1).size(), 4U);
  EXPECT_EQ(rig.finished().at(1), FinishReason::kLength);
}

TEST(SchedulerTest, FinishWorksInEveryState) {
  SchedulerConfig config = Config();
  config.max_num_seqs = 2;
  config.max_num_batched_tokens = 8;
  Rig rig(config);
  Scheduler& scheduler = rig.scheduler();
  scheduler.Add(Spec(1, Count(4), 10));
  scheduler.Add(Spec(2, Count(20, 50), 10));
  scheduler.Add(Spec(3, Count(4, 90), 10));
  const ScheduledStep step = scheduler.Plan();
  EXPECT_THAT(Ids(step), ElementsAre(1, 2));
  EXPECT_TRUE(scheduler.Finish(1));  // decoding, in flight
  EXPECT_TRUE(scheduler.Finish(3));  // waiting
  EXPECT_FALSE(scheduler.Finish(3));
  EXPECT_FALSE(scheduler.Finish(99));
  scheduler.CheckInvariants();
  EXPECT_THAT(scheduler.Update(step, {.tokens = {{.token_id = 7}}}), IsEmpty());
  EXPECT_THAT(Ids(scheduler.Plan()), ElementsAre(2));
  EXPECT_TRUE(scheduler.Finish(2));  // in the middle of its prompt
  EXPECT_TRUE(scheduler.empty());
  EXPECT_EQ(scheduler.pool().num_used(), 0);
  EXPECT_TRUE(scheduler.Plan().empty());
}

TEST(SchedulerTest, ALostKvCacheIsComputedAgainInOrder) {
  Rig rig(Config());
  Scheduler& scheduler = rig.scheduler();
  scheduler.Add(Spec(1, Count(9), 10));
  scheduler.Add(Spec(2, Count(9), 10));
  rig.Step();
  rig.Step();
  scheduler.Add(Spec(3, Count(9), 10));
  const ScheduledStep lost = scheduler.Plan();
  EXPECT_THAT(Ids(lost), ElementsAre(1, 2, 3));
  EXPECT_GT(lost.prefix_cache_hits, 0);
  EXPECT_EQ(scheduler.LoseKvCache(), 2);  // of the third one nothing was computed yet
  scheduler.CheckInvariants();
  EXPECT_EQ(scheduler.num_waiting(), 3);
  EXPECT_EQ(scheduler.pool().num_used(), 0);
  const ScheduledStep again = scheduler.Plan();
  ASSERT_THAT(Ids(again), ElementsAre(1, 2, 3));
  EXPECT_THAT(again.plan.context_lens, ElementsAre(11, 11, 9));  // all tokens, nothing found
  EXPECT_EQ(again.plan.num_tokens(), 31);
  EXPECT_THAT(again.first_time, IsEmpty());
}

// Many sequences, a pool far too small, random arrivals and ends: every sequence gets the tokens
// that it gets alone, and no block is lost.
TEST(SchedulerTest, RandomLoadNeverChangesATokenOrLosesABlock) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    testing::Random random(seed);
    Rig rig(RandomConfig(&random));
    std::map<RequestId, SequenceSpec> specs;
    std::map<RequestId, bool> cancelled;
    for (RequestId id = 1; id <= 60; ++id) {
      specs[id] = RandomSpec(&random, id);
      rig.scheduler().Add(specs[id]);
      for (int64_t n = random.Int(0, 4); n > 0; --n) rig.Step();
      if (random.Int(0, 5) == 0) {
        const auto victim = static_cast<RequestId>(random.Int(1, int64_t(id)));
        if (rig.scheduler().Finish(victim)) cancelled[victim] = true;
        rig.scheduler().CheckInvariants();
      }
      if (random.Int(0, 9) == 0) {
        const int64_t num_running = rig.scheduler().num_running();
        ASSERT_EQ(rig.scheduler().LoseKvCache(), num_running);
        ASSERT_EQ(rig.scheduler().num_running(), 0);
        ASSERT_EQ(rig.scheduler().pool().num_used(), 0);
        rig.scheduler().CheckInvariants();
      }
    }
    rig.RunAll();
    for (const auto& [id, spec] : specs) {
      if (cancelled.contains(id)) continue;
      ASSERT_EQ(rig.generated().at(id), Alone(spec)) << "seed " << seed << ", request " << id;
    }
  }
}

}  // namespace
}  // namespace nibble::engine
