// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Hostile step plans: each is refused with the entry, its value and the limit, and the model works
// on.

#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/model.h"
#include "tests/engine/model/model_runner.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;
using testing::ModelRunner;
using testing::TestSequence;

constexpr int32_t kMax = std::numeric_limits<int32_t>::max();

struct Case {
  std::string name;
  std::function<void(StepPlan*)> damage;
  std::string message;  // part of the error
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

// The plan: 8 KV blocks of 16; sequence 0 has 20 tokens at 0..19, sequence 1 has 1 token at 5.
std::vector<Case> Cases() {
  return {
      {"TokenIdNegative", [](StepPlan* p) { p->token_ids[3] = -1; }, "token_ids[3] is -1"},
      {"TokenIdTooLarge", [](StepPlan* p) { p->token_ids[20] = 128; },
       "token_ids[20] is 128, the limits are 0 and 127"},
      {"PositionMissing", [](StepPlan* p) { p->positions.pop_back(); }, "20 positions"},
      {"PositionNegative", [](StepPlan* p) { p->positions[0] = -1; }, "positions[0] is -1, want 0"},
      {"PositionHuge", [](StepPlan* p) { p->positions[20] = kMax; }, "positions[20] is 2147483647"},
      {"PositionsSwapped", [](StepPlan* p) { std::swap(p->positions[1], p->positions[2]); },
       "positions[1] is 2, want 1"},
      {"SlotMissing", [](StepPlan* p) { p->slot_mapping.pop_back(); }, "20 slots"},
      {"SlotNegative", [](StepPlan* p) { p->slot_mapping[0] = -16; }, "slot_mapping[0] is -16"},
      {"SlotOutside", [](StepPlan* p) { p->slot_mapping[7] = 128; }, "slot_mapping[7] is 128"},
      {"SlotOfAnother", [](StepPlan* p) { p->slot_mapping[7] = p->slot_mapping[8]; },
       "slot_mapping[7]"},
      {"BlockNegative", [](StepPlan* p) { p->block_tables[0] = -1; },
       "block 0 of sequence 0 is -1"},
      {"BlockOutside", [](StepPlan* p) { p->block_tables[2] = 8; },
       "block 0 of sequence 1 is 8, the limits are 0 and 7"},
      {"BlockShared",
       [](StepPlan* p) {  // both sequences write slot 5 of one block
         p->block_tables[2] = p->block_tables[0];
         p->slot_mapping[20] = p->block_tables[0] * 16 + 5;
       },
       "is written twice"},
      {"BlockTwice",
       [](StepPlan* p) {  // positions 0..3 and 16..19 of one sequence in the same slots
         p->block_tables[1] = p->block_tables[0];
         for (size_t i = 16; i < 20; ++i) p->slot_mapping[i] = p->slot_mapping[i - 16];
       },
       "is written twice"},
      {"TableShort", [](StepPlan* p) { p->block_tables.pop_back(); },
       "3 block table entries, want 4"},
      {"TableWidthNegative", [](StepPlan* p) { p->max_blocks_per_seq = -1; },
       "max_blocks_per_seq is -1"},
      {"TableWidthHuge", [](StepPlan* p) { p->max_blocks_per_seq = kMax; }, "block table entries"},
      {"TableNarrow",
       [](StepPlan* p) {
         p->max_blocks_per_seq = 1;
         p->block_tables = {p->block_tables[0], p->block_tables[2]};
       },
       "context_lens[0] is 20, the limits are 20 and 16"},
      {"ContextNegative", [](StepPlan* p) { p->context_lens[1] = -5; }, "context_lens[1] is -5"},
      {"ContextShort", [](StepPlan* p) { p->context_lens[0] = 19; }, "context_lens[0] is 19"},
      {"ContextHuge", [](StepPlan* p) { p->context_lens[0] = kMax; },
       "context_lens[0] is 2147483647, the limits are 20 and 32"},
      {"ContextMissing", [](StepPlan* p) { p->context_lens.pop_back(); }, "query_start"},
      {"QueryStartEmpty", [](StepPlan* p) { p->query_start.clear(); }, "0 entries in query_start"},
      {"QueryStartNotZero", [](StepPlan* p) { p->query_start[0] = 1; }, "query_start goes from 1"},
      {"QueryStartNegative", [](StepPlan* p) { p->query_start[1] = -4; }, "want at least one"},
      {"QueryStartPastEnd", [](StepPlan* p) { p->query_start[1] = kMax; }, "want at least one"},
      {"QueryStartEnd", [](StepPlan* p) { p->query_start[2] = 22; }, "to 22, want 0 to 21"},
      {"LogitsNegative", [](StepPlan* p) { p->logits_indices[0] = -1; }, "logits_indices[0] is -1"},
      {"LogitsOutside", [](StepPlan* p) { p->logits_indices[1] = 21; },
       "logits_indices[1] is 21, the limits are 20 and 20"},
      {"LogitsTwice", [](StepPlan* p) { p->logits_indices[1] = p->logits_indices[0]; },
       "logits_indices[1] is 19"},
      {"LogitsMore",
       [](StepPlan* p) { p->logits_indices.insert(p->logits_indices.end(), 1000, 20); },
       "logits_indices[2]"},
  };
}

class HostilePlanTest : public ::testing::TestWithParam<Case> {};

TEST_P(HostilePlanTest, IsRefusedAndTheModelWorksOn) {
  ThreadPool pool(1);
  auto model = testing::LoadOrFail(NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama", {}, &pool);
  ASSERT_NE(model, nullptr);
  ASSERT_EQ(model->config().vocab_size, 128);
  ModelRunner runner(model.get(), 8, &pool);
  TestSequence first{.ids = std::vector<int32_t>(20, 5)};
  TestSequence second{.ids = std::vector<int32_t>(6, 9)};
  runner.Step({{.sequence = &second, .num_tokens = 5}});
  const StepPlan good = runner.MakePlan(
      {{.sequence = &first, .num_tokens = 20}, {.sequence = &second, .num_tokens = 1}});
  StepPlan bad = good;
  GetParam().damage(&bad);
  // More logits than the plan may ask for would show as an overflow here.
  std::vector<float> logits(2 * 128);
  const absl::Status status = model->Forward(bad, runner.cache(), logits.data(), &pool);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_TRUE(model->Forward(good, runner.cache(), logits.data(), &pool).ok());
}

INSTANTIATE_TEST_SUITE_P(, HostilePlanTest, ::testing::ValuesIn(Cases()),
                         [](const ::testing::TestParamInfo<Case>& test) {
                           return test.param.name;
                         });

TEST(ModelPlanTest, EmptyPlanDoesNothing) {
  ThreadPool pool(1);
  auto model = testing::LoadOrFail(NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama", {}, &pool);
  ASSERT_NE(model, nullptr);
  ModelRunner runner(model.get(), 8, &pool);
  StepPlan plan;
  plan.query_start = {0};
  EXPECT_TRUE(model->Forward(plan, runner.cache(), nullptr, &pool).ok());
}

// The model has 128 positions; the cache has room for more.
TEST(ModelPlanTest, ContextBeyondTheModelsPositionsIsRefused) {
  ThreadPool pool(1);
  auto model = testing::LoadOrFail(NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama", {}, &pool);
  ASSERT_NE(model, nullptr);
  ModelRunner runner(model.get(), 16, &pool);
  TestSequence sequence{.ids = std::vector<int32_t>(129, 1)};
  const StepPlan plan = runner.MakePlan({{.sequence = &sequence, .num_tokens = 129}});
  std::vector<float> logits(128);
  const absl::Status status = model->Forward(plan, runner.cache(), logits.data(), &pool);
  EXPECT_THAT(std::string(status.message()), HasSubstr("context_lens[0] is 129"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("128"));
}

TEST(ModelReserveTest, LimitsAreNamedAndStepsWithinThemAreTheSame) {
  ThreadPool pool(2);
  const std::string dir = NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama";
  auto model = testing::LoadOrFail(dir, {}, &pool);
  ASSERT_NE(model, nullptr);
  EXPECT_THAT(std::string(model->Reserve({.max_tokens = -1}, &pool).message()),
              HasSubstr("a step of -1 tokens: the limits are 0 and 2147483647"));
  EXPECT_THAT(std::string(model->Reserve({.max_positions = 129}, &pool).message()),
              HasSubstr("sequences of 129 tokens: the limits are 0 and 128"));
  ASSERT_TRUE(model->Reserve({.max_tokens = 30, .max_positions = 64}, &pool).ok());
  ModelRunner reserved(model.get(), 8, &pool);
  auto other = testing::LoadOrFail(dir, {}, &pool);
  ASSERT_NE(other, nullptr);
  ModelRunner grown(other.get(), 8, &pool);
  // Within the limits, beyond the first, beyond both.
  for (const int64_t num_tokens : {30, 50, 120}) {
    const std::vector<int32_t> ids(static_cast<size_t>(num_tokens), 3);
    EXPECT_TRUE(
        testing::SameBits(reserved.Prefill(ids, num_tokens), grown.Prefill(ids, num_tokens)));
  }
}

}  // namespace
}  // namespace nibble::engine
