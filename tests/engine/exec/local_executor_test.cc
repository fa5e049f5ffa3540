// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/local_executor.h"

#include <functional>
#include <limits>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/engine/model/model_runner.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;

const std::string kModelDir = NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama";

// 8 tokens in blocks 1 and 0 of a cache with blocks of 4; greedy.
StepPlan GreedyPlan() {
  StepPlan plan;
  plan.token_ids = {1, 2, 3, 4, 5, 6, 7, 8};
  plan.positions = {0, 1, 2, 3, 4, 5, 6, 7};
  plan.slot_mapping = {4, 5, 6, 7, 0, 1, 2, 3};
  plan.query_start = {0, 8};
  plan.context_lens = {8};
  plan.block_tables = {1, 0};
  plan.max_blocks_per_seq = 2;
  plan.logits_indices = {7};
  plan.sampling = {{.temperature = 0.0F}};
  return plan;
}

class LocalExecutorTest : public ::testing::Test {
 protected:
  LocalExecutorTest() : pool_(2) {}

  absl::StatusOr<std::unique_ptr<LocalExecutor>> Create(const LocalExecutorOptions& options) {
    return LocalExecutor::Create(testing::LoadOrFail(kModelDir, {}, &pool_), options, &pool_);
  }

  ThreadPool pool_;
};

TEST_F(LocalExecutorTest, LimitsAreTheModelsAndTheOptions) {
  auto executor = Create({.block_size = 4, .num_blocks = 9});
  ASSERT_TRUE(executor.ok()) << executor.status();
  const ExecutorLimits limits = (*executor)->limits();
  EXPECT_EQ(limits.num_blocks, 9);
  EXPECT_EQ(limits.block_size, 4);
  EXPECT_EQ(limits.max_model_len, 128);
  EXPECT_EQ(limits.vocab_size, 128);
}

TEST_F(LocalExecutorTest, OptionsOutOfRangeAreNamed) {
  EXPECT_THAT(std::string(Create({.num_blocks = 4, .max_model_len = 129}).status().message()),
              HasSubstr("max_model_len is 129, the limits are 1 and 128"));
  EXPECT_THAT(std::string(Create({.num_blocks = 0}).status().message()), HasSubstr("0 KV blocks"));
}

TEST_F(LocalExecutorTest, SamplesWhatTheLogitsSay) {
  auto executor = Create({.block_size = 4, .num_blocks = 2});
  ASSERT_TRUE(executor.ok()) << executor.status();
  auto model = testing::LoadOrFail(kModelDir, {}, &pool_);
  ASSERT_NE(model, nullptr);
  testing::ModelRunner runner(model.get(), 2, &pool_, 4);
  const std::vector<float> logits = runner.Prefill({1, 2, 3, 4, 5, 6, 7, 8}, 8);
  const int32_t want = testing::ArgMax(logits.data() + 7 * 128, 128);

  StepPlan plan = GreedyPlan();
  auto output = (*executor)->Execute(plan);
  ASSERT_TRUE(output.ok()) << output.status();
  ASSERT_EQ(output->tokens.size(), 1U);
  EXPECT_EQ(output->tokens[0].token_id, want);

  plan.sampling[0].banned_token_ids = {want};
  output = (*executor)->Execute(plan);
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_NE(output->tokens[0].token_id, want);

  // A step whose prompts are not finished samples nothing.
  plan.logits_indices.clear();
  plan.sampling.clear();
  output = (*executor)->Execute(plan);
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_TRUE(output->tokens.empty());
}

TEST_F(LocalExecutorTest, FinishWithNothingUnderWayIsAnError) {
  auto executor = Create({.block_size = 4, .num_blocks = 2});
  ASSERT_TRUE(executor.ok()) << executor.status();
  EXPECT_EQ((*executor)->Finish().status(), absl::FailedPreconditionError("no step is under way"));
  const StepPlan plan = GreedyPlan();
  ASSERT_TRUE((*executor)->Begin(plan).ok());
  EXPECT_TRUE((*executor)->Finish().ok());
  EXPECT_EQ((*executor)->Finish().status().code(), absl::StatusCode::kFailedPrecondition);
  StepPlan refused = plan;
  refused.sampling.clear();
  EXPECT_FALSE((*executor)->Execute(refused).ok());
  EXPECT_EQ((*executor)->Finish().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(LocalExecutorTest, HostileSamplingRowsAreRefusedAndTheNextPlanRuns) {
  auto executor = Create({.block_size = 4, .num_blocks = 2});
  ASSERT_TRUE(executor.ok()) << executor.status();
  const std::vector<std::pair<std::function<void(StepPlan*)>, std::string>> cases = {
      {[](StepPlan* p) { p->sampling.clear(); }, "0 sampling rows for 1 logits_indices"},
      {[](StepPlan* p) { p->logits_indices.resize(1000000, 7); },
       "1000000 logits_indices, the limit is 64"},
      {[](StepPlan* p) {
         p->sampling[0].logit_bias = {{128, 1.0F}};
       },
       "logit_bias has id 128, the limits are 0 and 127"},
      {[](StepPlan* p) { p->sampling[0].banned_token_ids = {-1}; }, "banned_token_ids has id -1"},
      {[](StepPlan* p) {
         p->sampling[0].prompt_token_ids = {1, 4000};
       },
       "prompt_token_ids has id 4000"},
      {[](StepPlan* p) { p->sampling[0].output_token_ids = {-7}; }, "output_token_ids has id -7"},
      {[](StepPlan* p) { p->slot_mapping[0] = 99; }, "slot_mapping[0] is 99"},
  };
  for (const auto& [damage, message] : cases) {
    StepPlan plan = GreedyPlan();
    damage(&plan);
    const auto output = (*executor)->Execute(plan);
    EXPECT_EQ(output.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(output.status().message()), HasSubstr(message));
  }
  EXPECT_TRUE((*executor)->Execute(GreedyPlan()).ok());
}

TEST_F(LocalExecutorTest, PlansBeyondWhatWasReservedAreRefused) {
  auto executor = Create({.block_size = 4,
                          .num_blocks = 3,
                          .max_model_len = 8,
                          .max_num_batched_tokens = 8,
                          .max_num_seqs = 1});
  ASSERT_TRUE(executor.ok()) << executor.status();
  ASSERT_TRUE((*executor)->Execute(GreedyPlan()).ok());

  StepPlan plan = GreedyPlan();
  plan.token_ids.push_back(9);
  EXPECT_THAT(std::string((*executor)->Execute(plan).status().message()),
              HasSubstr("9 tokens, the limit is 8 (max_num_batched_tokens)"));
  plan = GreedyPlan();
  plan.logits_indices = {6, 7};
  EXPECT_THAT(std::string((*executor)->Execute(plan).status().message()),
              HasSubstr("2 logits_indices, the limit is 1 (max_num_seqs)"));
  plan = GreedyPlan();
  plan.context_lens = {9};
  EXPECT_THAT(std::string((*executor)->Execute(plan).status().message()),
              HasSubstr("context of 9 tokens, the limit is 8 (max_model_len)"));
}

// What no step could be given is refused before the first, not during some later one.
TEST_F(LocalExecutorTest, StepsThatMemoryCannotHoldAreRefusedAtTheStart) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  absl::Status status = Create({.num_blocks = 4, .max_num_batched_tokens = kMax}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("a step of 2147483647 tokens with"));
  status = Create({.num_blocks = 4, .max_num_seqs = kMax}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("logits of 2147483647 sequences needs"));
  EXPECT_THAT(
      std::string(Create({.num_blocks = 4, .max_num_batched_tokens = kMax + 1}).status().message()),
      HasSubstr("max_num_batched_tokens is 2147483648, the limits are 1 and 2147483647"));
  EXPECT_THAT(std::string(Create({.num_blocks = 4, .max_num_seqs = 0}).status().message()),
              HasSubstr("max_num_seqs is 0, the limits are 1 and"));
}

// A model of which this test decides when memory runs out.
class StubModel final : public Model {
 public:
  explicit StubModel(std::unique_ptr<Model> model, absl::Status reserve, bool throws)
      : model_(std::move(model)), reserve_(std::move(reserve)), throws_(throws) {}

  const ModelConfig& config() const override { return model_->config(); }
  int64_t weight_bytes() const override { return model_->weight_bytes(); }
  DType kv_dtype() const override { return model_->kv_dtype(); }
  std::string quantization_name() const override { return model_->quantization_name(); }
  const ModelConfig& rank_config() const override { return model_->rank_config(); }
  void SetStageLink(comm::StageLink* /*link*/) override {}
  ExpertLoad expert_load() const override { return {}; }
  void SetCommunicator(comm::Communicator* communicator) override {
    model_->SetCommunicator(communicator);
  }
  bool has_logits() const override { return model_->has_logits(); }
  absl::StatusOr<std::unique_ptr<KvCache>> MakeKvCache(int64_t num_blocks,
                                                       int64_t block_size) const override {
    return model_->MakeKvCache(num_blocks, block_size);
  }
  KvMemory kv_memory() const override { return model_->kv_memory(); }
  absl::Status Reserve(const StepLimits& limits, ThreadPool* pool) override {
    EXPECT_EQ(limits.max_tokens, 2048);
    EXPECT_EQ(limits.max_positions, 128);
    (void)pool;
    return reserve_;
  }
  absl::Status Forward(const StepPlan& plan, KvCache* cache, float* logits,
                       ThreadPool* pool) override {
    if (!throws_) return model_->Forward(plan, cache, logits, pool);
    throws_ = false;
    pool->ParallelFor(8, 1, [](int64_t begin, int64_t) {
      if (begin == 5) throw std::bad_alloc();
    });
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<Model> model_;
  absl::Status reserve_;
  bool throws_;
};

TEST_F(LocalExecutorTest, TheModelReservesBeforeTheFirstStep) {
  auto executor =
      LocalExecutor::Create(std::make_unique<StubModel>(testing::LoadOrFail(kModelDir, {}, &pool_),
                                                        ResourceExhausted("too little"), false),
                            {.num_blocks = 4}, &pool_);
  EXPECT_EQ(executor.status(), ResourceExhausted("too little"));
}

TEST_F(LocalExecutorTest, MemoryThatRunsOutInAStepIsAnErrorAndNotTheEnd) {
  auto executor =
      LocalExecutor::Create(std::make_unique<StubModel>(testing::LoadOrFail(kModelDir, {}, &pool_),
                                                        absl::OkStatus(), true),
                            {.block_size = 4, .num_blocks = 2}, &pool_);
  ASSERT_TRUE(executor.ok()) << executor.status();
  const absl::Status status = (*executor)->Execute(GreedyPlan()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("a step of 8 tokens"));
  EXPECT_TRUE((*executor)->Execute(GreedyPlan()).ok());
}

}  // namespace
}  // namespace nibble::engine
