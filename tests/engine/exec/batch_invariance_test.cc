// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Scheduler, executor, model and sampler together, without the engine's threads: a request gets the
// same tokens and the same log probabilities, bit by bit, alone and in any company, and whether its
// prompt was computed or found in the prefix cache.

#include <bit>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "engine/exec/local_executor.h"
#include "engine/scheduler/scheduler.h"
#include "tests/engine/model/model_runner.h"
#include "tests/engine/model/tiny_checkpoint.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

constexpr int64_t kBlockSize = 16;

// Token ids and the bits of all log probabilities, in order.
using Answer = std::vector<std::pair<int32_t, uint32_t>>;

void Append(const TokenUpdate& update, Answer* answer) {
  const auto add = [answer](const TokenLogprob& entry) {
    answer->emplace_back(entry.token_id, std::bit_cast<uint32_t>(entry.logprob));
  };
  answer->emplace_back(update.token_id, 0);
  add(update.logprobs.sampled);
  for (const TokenLogprob& entry : update.logprobs.top) add(entry);
}

class Rig {
 public:
  Rig(const std::string& dir, const LoadOptions& load, int64_t num_blocks, int64_t max_num_tokens,
      bool enable_prefix_caching)
      : pool_(2) {
    auto executor = LocalExecutor::Create(testing::LoadOrFail(dir, load, &pool_),
                                          {.block_size = kBlockSize,
                                           .num_blocks = num_blocks,
                                           .max_num_batched_tokens = max_num_tokens,
                                           .max_num_seqs = 32},
                                          &pool_);
    EXPECT_TRUE(executor.ok()) << executor.status();
    if (!executor.ok()) return;
    executor_ = *std::move(executor);
    scheduler_ = std::make_unique<Scheduler>(
        SchedulerConfig{.max_num_seqs = 32,
                        .max_num_batched_tokens = max_num_tokens,
                        .num_blocks = num_blocks,
                        .block_size = kBlockSize,
                        .max_model_len = executor_->limits().max_model_len,
                        .enable_prefix_caching = enable_prefix_caching});
  }

  // Runs the requests to their ends; a new one joins at every step, so that prompts, decodes and
  // preemptions mix.
  std::map<RequestId, Answer> Run(const std::vector<SequenceSpec>& specs) {
    std::map<RequestId, Answer> answers;
    size_t num_added = 0;
    while (num_added < specs.size() || !scheduler_->empty()) {
      if (num_added < specs.size()) scheduler_->Add(specs[num_added++]);
      const ScheduledStep step = scheduler_->Plan();
      num_preemptions_ += step.num_preemptions;
      num_cached_tokens_ += step.prefix_cache_hits;
      const absl::StatusOr<StepOutput> output = executor_->Execute(step.plan);
      if (!output.ok()) {
        ADD_FAILURE() << output.status();
        return answers;
      }
      for (const TokenUpdate& update : scheduler_->Update(step, *output)) {
        Append(update, &answers[update.id]);
      }
    }
    return answers;
  }

  bool ok() const { return scheduler_ != nullptr; }
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t num_cached_tokens() const { return num_cached_tokens_; }

 private:
  ThreadPool pool_;
  std::unique_ptr<LocalExecutor> executor_;
  std::unique_ptr<Scheduler> scheduler_;
  int64_t num_preemptions_ = 0;
  int64_t num_cached_tokens_ = 0;
};

std::vector<int32_t> RandomIds(int64_t count, int64_t vocab_size, uint32_t seed) {
  testing::Random random(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(random.Int(0, vocab_size - 1)));
  }
  return ids;
}

// Request `id` of 32: sampled, with a seed of its own, prompts and answers of many lengths.
SequenceSpec MakeSpec(RequestId id) {
  const auto seed = static_cast<uint32_t>(id);
  SequenceSpec spec{
      .id = id, .prompt_token_ids = RandomIds(1 + seed * 7 % 61, 96, 1000 + seed), .seed = 40 + id};
  spec.sampling.temperature = id % 4 == 0 ? 0.0F : 1.0F;
  spec.sampling.top_p = 0.95F;
  spec.sampling.repetition_penalty = id % 3 == 0 ? 1.2F : 1.0F;
  spec.sampling.max_tokens = 20 + seed % 13;
  spec.sampling.logprobs = 3;
  return spec;
}

struct Subject {
  std::string name;
  Quantization quantization;
  bool has_experts;
};
void PrintTo(const Subject& subject, std::ostream* out) { *out << subject.name; }

class BatchInvarianceTest : public ::testing::TestWithParam<Subject> {
 protected:
  // Two layers over which a mistake in the first one's order spreads.
  static std::string ModelDir() {
    testing::TinyCheckpoint checkpoint(2);
    checkpoint.config["max_position_embeddings"] = 128;
    if (GetParam().has_experts) checkpoint.UseExperts(6, 2);
    return checkpoint.Write("batch_invariance_" + GetParam().name);
  }
  static LoadOptions Options() {
    return {.quantization = GetParam().quantization, .isa = HostCpuFeatures().Best()};
  }
};

TEST_P(BatchInvarianceTest, AloneAndAmong31Others) {
  const std::string dir = ModelDir();
  std::vector<SequenceSpec> specs;
  for (RequestId id = 0; id < 32; ++id) specs.push_back(MakeSpec(id));
  // Few enough blocks for preemptions, a budget small enough to cut prompts.
  Rig together(dir, Options(), 14, 48, true);
  ASSERT_TRUE(together.ok());
  const std::map<RequestId, Answer> answers = together.Run(specs);
  ASSERT_EQ(answers.size(), specs.size());
  EXPECT_GT(together.num_preemptions(), 0);
  for (const SequenceSpec& spec : specs) {
    Rig alone(dir, Options(), 14, 128, false);
    ASSERT_TRUE(alone.ok());
    const Answer want = alone.Run({spec}).at(spec.id);
    // Five entries a token: itself, its log probability, the three most likely.
    EXPECT_EQ(want.size(), static_cast<size_t>(5 * spec.sampling.max_tokens));
    EXPECT_EQ(answers.at(spec.id), want) << "request " << spec.id;
  }
}

INSTANTIATE_TEST_SUITE_P(, BatchInvarianceTest,
                         ::testing::Values(Subject{"float32", Quantization::kNone, false},
                                           Subject{"w4a8", Quantization::kW4A8, false},
                                           Subject{"experts_float32", Quantization::kNone, true},
                                           Subject{"experts_w4a8", Quantization::kW4A8, true}),
                         [](const auto& test) { return test.param.name; });

// A prompt of 700 tokens crosses attention's tiles (64 positions) and segments (512); its second
// half is found in the cache or not, under full attention and a window that starts in other tiles.
TEST(PrefixCacheInvarianceTest, LongPromptsHitAndMissAlike) {
  for (const int64_t window : {0, 70}) {
    testing::TinyCheckpoint checkpoint(2);
    checkpoint.config["max_position_embeddings"] = 1024;
    if (window > 0) {
      checkpoint.config["architectures"] = {"MistralForCausalLM"};
      checkpoint.config["model_type"] = "mistral";
      checkpoint.config["sliding_window"] = window;
    }
    const std::string dir = checkpoint.Write("prefix_invariance_" + std::to_string(window));
    const LoadOptions load = {.isa = HostCpuFeatures().Best()};
    SequenceSpec shared{.id = 1, .prompt_token_ids = RandomIds(600, 96, 1)};
    shared.sampling.max_tokens = 1;
    SequenceSpec spec{.id = 2, .prompt_token_ids = shared.prompt_token_ids};
    for (const int32_t id : RandomIds(100, 96, 2)) spec.prompt_token_ids.push_back(id);
    spec.sampling.temperature = 0.0F;
    spec.sampling.max_tokens = 12;
    spec.sampling.logprobs = 5;

    Rig cold(dir, load, 64, 1024, false);
    ASSERT_TRUE(cold.ok());
    const Answer want = cold.Run({spec}).at(2);
    EXPECT_EQ(cold.num_cached_tokens(), 0);

    Rig warm(dir, load, 64, 96, true);
    ASSERT_TRUE(warm.ok());
    warm.Run({shared});
    EXPECT_EQ(warm.Run({spec}).at(2), want) << "window " << window;
    EXPECT_EQ(warm.num_cached_tokens(), 592);  // 37 blocks of 16
  }
}

}  // namespace
}  // namespace nibble::engine
