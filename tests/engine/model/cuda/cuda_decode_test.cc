// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Decode steps: captured graphs, sampling, and text of the bundled models.

#include <span>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/model/cuda/cuda_decoder.h"
#include "engine/sampling/sampler.h"
#include "tests/engine/model/cuda/cuda_models.h"

namespace nibble::engine {
namespace {

using testing::CudaModelTest;
using testing::FixtureModel;
using testing::ModelRunner;
using testing::SameBits;
using testing::SomeIds;
using testing::TestChunk;
using testing::TestSequence;

TEST(CudaBucketTest, StepsArePaddedToFewSizes) {
  const auto bucket = [](int64_t n) { return CudaDecoderModel::BucketOf(n, 30); };
  EXPECT_EQ(bucket(0), 0);
  EXPECT_EQ(bucket(1), 1);
  EXPECT_EQ(bucket(3), 4);
  EXPECT_EQ(bucket(5), 8);
  EXPECT_EQ(bucket(9), 16);
  EXPECT_EQ(bucket(24), 24);
  EXPECT_EQ(bucket(25), 30);  // the most there can be
  EXPECT_EQ(bucket(31), 0);
  EXPECT_EQ(CudaDecoderModel::BucketOf(3, 3), 3);
}

class CudaDecodeTest : public CudaModelTest {
 protected:
  static constexpr StepLimits kLimits{
      .max_tokens = 32, .max_positions = 64, .max_samples = 8, .max_seqs = 8, .block_size = 16};

  // Logits of `steps` decode steps of three sequences behind prompts of 3, 4 and 5 tokens.
  std::vector<float> Decode(Model* model, int steps) {
    EXPECT_TRUE(model->Reserve(kLimits, &pool_).ok());
    ModelRunner runner(model, 6, &pool_);
    std::vector<TestSequence> sequences;
    for (int64_t s = 0; s < 3; ++s) {
      sequences.push_back({.ids = SomeIds(16, model->config().vocab_size, 20 + s)});
    }
    std::vector<TestChunk> chunks;
    for (size_t s = 0; s < 3; ++s) {
      chunks.push_back({.sequence = &sequences[s], .num_tokens = static_cast<int64_t>(s) + 3});
    }
    std::vector<float> logits = runner.Step(chunks);
    for (TestChunk& chunk : chunks) chunk.num_tokens = 1;
    for (int step = 0; step < steps; ++step) {
      const std::vector<float> more = runner.Step(chunks);
      logits.insert(logits.end(), more.begin(), more.end());
    }
    return logits;
  }
};

TEST_F(CudaDecodeTest, GraphsGiveTheBitsOfEagerSteps) {
  for (const char* name : {"llama3", "mixtral"}) {
    const auto eager =
        LoadOnDevice(FixtureModel(name), {}, {.enforce_eager = true, .use_cublaslt = false});
    const auto replayed = LoadOnDevice(FixtureModel(name), {});
    ASSERT_TRUE(eager != nullptr && replayed != nullptr);
    EXPECT_TRUE(SameBits(Decode(replayed.get(), 4), Decode(eager.get(), 4))) << name;
    EXPECT_EQ(static_cast<const CudaDecoderModel&>(*eager).num_graphs(), 0);
    EXPECT_EQ(static_cast<const CudaDecoderModel&>(*replayed).num_graphs(), 1);
    // The fourth row of the bucket is padding, and no expert's load.
    EXPECT_EQ(replayed->expert_load().tokens, eager->expert_load().tokens);
    // A cache of its own is another one to capture for.
    EXPECT_TRUE(SameBits(Decode(replayed.get(), 3), Decode(eager.get(), 3))) << name;
  }
}

// What StepRunner asks for, without one.
class SamplingSteps {
 public:
  SamplingSteps(Model* model, ThreadPool* pool)
      : model_(model), pool_(pool), runner_(model, 8, pool) {}

  std::vector<int32_t> Sample(const std::vector<TestChunk>& chunks,
                              const std::vector<SamplingRow>& rows) {
    StepPlan plan = runner_.MakePlan(chunks);
    plan.sampling = rows;
    std::vector<float> logits(
        static_cast<size_t>(plan.num_samples() * model_->config().vocab_size));
    const auto output =
        model_->ForwardAndSample(plan, runner_.cache(), {.logits = logits.data()}, pool_);
    EXPECT_TRUE(output.ok()) << output.status();
    std::vector<int32_t> tokens;
    if (!output.ok()) return tokens;
    for (const SampledToken& token : output->tokens) tokens.push_back(token.token_id);
    for (const TestChunk& chunk : chunks) chunk.sequence->num_computed += chunk.num_tokens;
    return tokens;
  }
  // The next tokens of a sequence, of which none is sampled.
  void Skip(TestSequence* sequence, int64_t num_tokens) {
    StepPlan plan = runner_.MakePlan({{.sequence = sequence, .num_tokens = num_tokens}});
    plan.logits_indices.clear();
    const auto output = model_->ForwardAndSample(plan, runner_.cache(), {}, pool_);
    EXPECT_TRUE(output.ok()) << output.status();
    sequence->num_computed += num_tokens;
  }
  // Greedy tokens behind `prompt`.
  std::vector<int32_t> Continue(const std::vector<int32_t>& prompt, int64_t count) {
    TestSequence sequence{.ids = prompt};
    std::vector<int32_t> text;
    int64_t num_tokens = static_cast<int64_t>(prompt.size());
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<int32_t> tokens =
          Sample({{.sequence = &sequence, .num_tokens = num_tokens}}, {{.temperature = 0.0F}});
      if (tokens.empty()) break;
      text.push_back(tokens[0]);
      sequence.ids.push_back(tokens[0]);
      num_tokens = 1;
    }
    return text;
  }

 private:
  Model* model_;
  ThreadPool* pool_;
  ModelRunner runner_;
};

TEST_F(CudaDecodeTest, TextOfTheBundledModelsIsThatOfFloat32OnTheCpu) {
  for (const char* name : {"models/stories-llama", "models/stories-mixtral"}) {
    const std::string dir = testing::DataPath(name);
    const auto cpu = LoadOnCpu(dir, {.dtype = DType::kF32});
    const auto device = LoadOnDevice(dir, {.dtype = DType::kF32});
    ASSERT_TRUE(cpu != nullptr && device != nullptr);
    const std::vector<int32_t> prompt = {4091, 402, 350};
    EXPECT_EQ(SamplingSteps(device.get(), &pool_).Continue(prompt, 4),
              SamplingSteps(cpu.get(), &pool_).Continue(prompt, 4))
        << name;
  }
}

// Steps that sample nothing are not waited for: what they read of the host must stay until then.
TEST_F(CudaDecodeTest, ChunksThatNobodyWaitsForChangeNothing) {
  const auto model = LoadOnDevice(FixtureModel("llama3"), {});
  ASSERT_NE(model, nullptr);
  SamplingSteps steps(model.get(), &pool_);
  const std::vector<int32_t> ids = SomeIds(40, model->config().vocab_size);
  const std::vector<int32_t> wanted = steps.Continue(ids, 1);
  TestSequence sequence{.ids = ids};
  for (const int64_t chunk : {7, 1, 12, 3, 9}) steps.Skip(&sequence, chunk);
  EXPECT_EQ(steps.Sample({{.sequence = &sequence, .num_tokens = 8}}, {{.temperature = 0.0F}}),
            wanted);
}

TEST_F(CudaDecodeTest, SeededRowsDrawWhatTheHostDraws) {
  const LoadOptions load{.dtype = DType::kF32};
  const auto cpu = LoadOnCpu(FixtureModel("llama3"), load);
  const auto device = LoadOnDevice(FixtureModel("llama3"), load);
  ASSERT_TRUE(cpu != nullptr && device != nullptr);
  const int64_t vocab = cpu->config().vocab_size;
  std::vector<SamplingRow> rows(5);
  rows[0] = {.temperature = 0.0F};
  rows[1] = {.temperature = 0.8F, .seed = 7, .output_index = 3};
  rows[2] = {.temperature = 1.3F, .top_p = 0.9F, .top_k = 20, .seed = 8};
  // The host's: a bias, and log probabilities.
  rows[3] = {.temperature = 0.0F, .logit_bias = {{17, 100.0F}}};
  rows[4] = {.temperature = 1.0F, .seed = 9, .logprobs = 2};
  const auto tokens = [&](Model* model) {
    std::vector<TestSequence> sequences;
    for (int64_t s = 0; s < 5; ++s) sequences.push_back({.ids = SomeIds(4, vocab, 40 + s)});
    std::vector<TestChunk> chunks;
    for (TestSequence& sequence : sequences) {
      chunks.push_back({.sequence = &sequence, .num_tokens = 4});
    }
    return SamplingSteps(model, &pool_).Sample(chunks, rows);
  };
  const std::vector<int32_t> found = tokens(device.get());
  EXPECT_EQ(found, tokens(cpu.get()));
  ASSERT_EQ(found.size(), 5U);
  EXPECT_EQ(found[3], 17);
}

}  // namespace
}  // namespace nibble::engine
