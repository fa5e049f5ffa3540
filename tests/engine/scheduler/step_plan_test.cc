// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/scheduler/step_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/scheduler/scheduler.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

SchedulerConfig Config() {
  return {.max_num_seqs = 4,
          .max_num_batched_tokens = 8,
          .num_blocks = 10,
          .block_size = 4,
          .max_model_len = 40,
          .eos_token_ids = {2}};
}

StepOutput Tokens(std::initializer_list<int32_t> ids) {
  StepOutput output;
  for (const int32_t id : ids) output.tokens.push_back({.token_id = id});
  return output;
}

// Two sequences through four steps, every array written down by hand.
TEST(StepPlanTest, ArraysOfMixedStepsAreExact) {
  Scheduler scheduler(Config());
  scheduler.Add({.id = 1,
                 .prompt_token_ids = {10, 11, 12, 13, 14},
                 .sampling = {.max_tokens = 8, .temperature = 0.5F, .top_p = 0.9F, .top_k = 3},
                 .seed = 77});
  scheduler.Add({.id = 2,
                 .prompt_token_ids = {20, 21, 22, 23, 24, 25},
                 .sampling = {.max_tokens = 8, .logprobs = 2},
                 .seed = 88});

  // Step 1: all of sequence 1 (blocks 0, 1), the first 3 tokens of sequence 2 (blocks 2, 3).
  ScheduledStep step = scheduler.Plan();
  EXPECT_THAT(step.plan.token_ids, ElementsAre(10, 11, 12, 13, 14, 20, 21, 22));
  EXPECT_THAT(step.plan.positions, ElementsAre(0, 1, 2, 3, 4, 0, 1, 2));
  EXPECT_THAT(step.plan.slot_mapping, ElementsAre(0, 1, 2, 3, 4, 8, 9, 10));
  EXPECT_THAT(step.plan.query_start, ElementsAre(0, 5, 8));
  EXPECT_THAT(step.plan.context_lens, ElementsAre(5, 3));
  EXPECT_EQ(step.plan.max_blocks_per_seq, 2);
  EXPECT_THAT(step.plan.block_tables, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(step.plan.logits_indices, ElementsAre(4));
  ASSERT_EQ(step.plan.sampling.size(), 1U);
  EXPECT_EQ(step.plan.sampling[0].temperature, 0.5F);
  EXPECT_EQ(step.plan.sampling[0].top_p, 0.9F);
  EXPECT_EQ(step.plan.sampling[0].top_k, 3);
  EXPECT_EQ(step.plan.sampling[0].seed, 77U);
  EXPECT_EQ(step.plan.sampling[0].output_index, 0);
  EXPECT_EQ(step.plan.sampling[0].logprobs, -1);
  EXPECT_EQ(step.num_prompt_tokens, 8);
  EXPECT_EQ(step.first_time.size(), 2U);
  scheduler.Update(step, Tokens({30}));

  // Step 2: sequence 1 decodes first, then the rest of sequence 2's prompt.
  step = scheduler.Plan();
  EXPECT_THAT(step.plan.token_ids, ElementsAre(30, 23, 24, 25));
  EXPECT_THAT(step.plan.positions, ElementsAre(5, 3, 4, 5));
  EXPECT_THAT(step.plan.slot_mapping, ElementsAre(5, 11, 12, 13));
  EXPECT_THAT(step.plan.query_start, ElementsAre(0, 1, 4));
  EXPECT_THAT(step.plan.context_lens, ElementsAre(6, 6));
  EXPECT_THAT(step.plan.block_tables, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(step.plan.logits_indices, ElementsAre(0, 3));
  EXPECT_EQ(step.plan.sampling[0].output_index, 1);
  EXPECT_EQ(step.plan.sampling[1].output_index, 0);
  EXPECT_EQ(step.plan.sampling[1].seed, 88U);
  EXPECT_EQ(step.plan.sampling[1].logprobs, 2);
  EXPECT_EQ(step.num_prompt_tokens, 3);
  EXPECT_THAT(step.first_time, IsEmpty());
  scheduler.Update(step, Tokens({31, 40}));

  // Step 3: both decode.
  step = scheduler.Plan();
  EXPECT_THAT(step.plan.token_ids, ElementsAre(31, 40));
  EXPECT_THAT(step.plan.positions, ElementsAre(6, 6));
  EXPECT_THAT(step.plan.slot_mapping, ElementsAre(6, 14));
  EXPECT_THAT(step.plan.query_start, ElementsAre(0, 1, 2));
  EXPECT_THAT(step.plan.logits_indices, ElementsAre(0, 1));
  EXPECT_EQ(step.num_prompt_tokens, 0);
  // Sequence 1 ends; sequence 2 fills its second block.
  std::vector<TokenUpdate> updates = scheduler.Update(step, Tokens({2, 41}));
  EXPECT_EQ(updates[0].finish_reason, FinishReason::kStop);
  scheduler.Update(scheduler.Plan(), Tokens({42}));

  // Step 5: a third block for position 8: the one freed last comes after the fresh ones.
  step = scheduler.Plan();
  EXPECT_THAT(step.plan.token_ids, ElementsAre(42));
  EXPECT_THAT(step.plan.positions, ElementsAre(8));
  EXPECT_THAT(step.plan.slot_mapping, ElementsAre(16));
  EXPECT_THAT(step.plan.context_lens, ElementsAre(9));
  EXPECT_EQ(step.plan.max_blocks_per_seq, 3);
  EXPECT_THAT(step.plan.block_tables, ElementsAre(2, 3, 4));
}

TEST(StepPlanTest, SamplingRowsCarryHistoryOnlyForPenalties) {
  Scheduler scheduler(Config());
  scheduler.Add({.id = 1, .prompt_token_ids = {5, 6}, .sampling = {.logit_bias = {{3, 1.5F}}}});
  scheduler.Add({.id = 2, .prompt_token_ids = {7, 8}, .sampling = {.presence_penalty = 0.5F}});
  scheduler.Update(scheduler.Plan(), Tokens({50, 60}));
  const ScheduledStep step = scheduler.Plan();
  EXPECT_THAT(step.plan.sampling[0].prompt_token_ids, IsEmpty());
  EXPECT_THAT(step.plan.sampling[0].output_token_ids, IsEmpty());
  EXPECT_THAT(step.plan.sampling[0].logit_bias, ElementsAre(std::make_pair(3, 1.5F)));
  EXPECT_THAT(step.plan.sampling[1].prompt_token_ids, ElementsAre(7, 8));
  EXPECT_THAT(step.plan.sampling[1].output_token_ids, ElementsAre(60));
  EXPECT_EQ(step.plan.sampling[1].presence_penalty, 0.5F);
}

TEST(StepPlanTest, EndTokensAreBannedUntilMinTokens) {
  Scheduler scheduler(Config());
  scheduler.Add({.id = 1,
                 .prompt_token_ids = {5},
                 .sampling = {.min_tokens = 2, .stop_token_ids = {9, 2, 4}}});
  scheduler.Add({.id = 2,
                 .prompt_token_ids = {5},
                 .sampling = {.min_tokens = 1, .stop_token_ids = {9}, .ignore_eos = true}});
  ScheduledStep step = scheduler.Plan();
  EXPECT_THAT(step.plan.sampling[0].banned_token_ids, ElementsAre(2, 4, 9));
  EXPECT_THAT(step.plan.sampling[1].banned_token_ids, ElementsAre(9));
  scheduler.Update(step, Tokens({20, 20}));
  step = scheduler.Plan();
  EXPECT_THAT(step.plan.sampling[0].banned_token_ids, ElementsAre(2, 4, 9));
  EXPECT_THAT(step.plan.sampling[1].banned_token_ids, IsEmpty());
  scheduler.Update(step, Tokens({20, 20}));
  EXPECT_THAT(scheduler.Plan().plan.sampling[0].banned_token_ids, IsEmpty());
}

}  // namespace
}  // namespace nibble::engine
