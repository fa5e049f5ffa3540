// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A token's logits depend on the tokens before it and on nothing else: not on how the prompt was
// cut, not on the batch, not on a recomputation, bit by bit.

#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "engine/model/model.h"
#include "tests/engine/model/model_runner.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using testing::ModelRunner;
using testing::SameBits;
using testing::TestChunk;
using testing::TestSequence;

struct Case {
  std::string name;
  std::string dir;
  LoadOptions options;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

// Every arithmetic (float32, 16-bit weights and cache, W4A8, int8 cache) and every shape of
// attention (grouped heads, q/k norms, sliding windows).
std::vector<Case> Cases() {
  const std::string stories = NIBBLE_SOURCE_DIR "/models/stories-llama";
  const std::string fixtures = NIBBLE_SOURCE_DIR "/tests/fixtures/models/";
  std::vector<Case> cases;
  for (const Isa isa : testing::HostIsas()) {
    const std::string suffix = fmt::format("_{}", ToString(isa));
    cases.push_back({"stories_bf16" + suffix, stories, {.isa = isa}});
    cases.push_back(
        {"stories_w4a8" + suffix, stories, {.quantization = Quantization::kW4A8, .isa = isa}});
    cases.push_back(
        {"stories_int8_cache" + suffix, stories, {.kv_cache_dtype = DType::kI8, .isa = isa}});
    cases.push_back({"qwen3_f32" + suffix, fixtures + "qwen3", {.dtype = DType::kF32, .isa = isa}});
    cases.push_back(
        {"mistral_f16" + suffix, fixtures + "mistral", {.dtype = DType::kF16, .isa = isa}});
    cases.push_back({"qwen2_bf16" + suffix, fixtures + "qwen2", {.isa = isa}});
  }
  return cases;
}

class ModelBatchingTest : public ::testing::TestWithParam<Case> {
 protected:
  ModelBatchingTest() : pool_(2) {
    model_ = testing::LoadOrFail(GetParam().dir, GetParam().options, &pool_);
  }
  std::vector<int32_t> RandomIds(int64_t count, uint32_t seed) const {
    testing::Random random(seed);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) {
      ids.push_back(static_cast<int32_t>(random.Int(0, model_->config().vocab_size - 1)));
    }
    return ids;
  }

  ThreadPool pool_;
  std::unique_ptr<Model> model_;
};

TEST_P(ModelBatchingTest, ChunksDoNotMatter) {
  ASSERT_NE(model_, nullptr);
  ModelRunner runner(model_.get(), 16, &pool_);
  const std::vector<int32_t> ids = RandomIds(53, 1);
  const std::vector<float> whole = runner.Prefill(ids, 53);
  for (const int64_t chunk : {1, 7, 16, 33}) {
    EXPECT_TRUE(SameBits(runner.Prefill(ids, chunk), whole)) << "chunks of " << chunk;
  }
}

TEST_P(ModelBatchingTest, OnlySampledRowsAreComputedAndEqual) {
  ASSERT_NE(model_, nullptr);
  ModelRunner runner(model_.get(), 16, &pool_);
  const std::vector<int32_t> ids = RandomIds(40, 2);
  const std::vector<float> whole = runner.Prefill(ids, 40);
  TestSequence sequence{.ids = ids};
  const std::vector<float> last = runner.Step({{.sequence = &sequence, .num_tokens = 40}});
  const auto vocab_size = model_->config().vocab_size;
  EXPECT_TRUE(SameBits(last, {whole.end() - vocab_size, whole.end()}));
}

TEST_P(ModelBatchingTest, BlockSizeDoesNotMatter) {
  ASSERT_NE(model_, nullptr);
  const std::vector<int32_t> ids = RandomIds(45, 3);
  ModelRunner runner(model_.get(), 8, &pool_, 16);
  ModelRunner other(model_.get(), 24, &pool_, 5);
  EXPECT_TRUE(SameBits(other.Prefill(ids, 45), runner.Prefill(ids, 45)));
}

// One sequence alone; then among others that are being prefilled and decoded, from chunks of other
// sizes.
TEST_P(ModelBatchingTest, OthersInTheBatchDoNotMatter) {
  ASSERT_NE(model_, nullptr);
  const std::vector<int32_t> ids = RandomIds(44, 4);
  ModelRunner alone(model_.get(), 16, &pool_);
  const std::vector<float> want = alone.Prefill(ids, 44);

  constexpr int kOthers = 7;
  ModelRunner runner(model_.get(), 64, &pool_);
  TestSequence sequence{.ids = ids};
  std::vector<TestSequence> others(kOthers);
  for (int o = 0; o < kOthers; ++o) {
    others[static_cast<size_t>(o)].ids = RandomIds(60, 100 + static_cast<uint32_t>(o));
  }
  testing::Random random(5);
  std::vector<float> got;
  while (sequence.num_computed < 44) {
    std::vector<TestChunk> chunks;
    size_t num_rows_before = 0;
    const int64_t at = random.Int(0, kOthers);
    for (int64_t o = 0; o <= kOthers; ++o) {
      if (o == at) {
        num_rows_before = chunks.size();
        chunks.push_back({.sequence = &sequence,
                          .num_tokens = std::min(random.Int(1, 9), 44 - sequence.num_computed),
                          .all_logits = true});
      }
      if (o == kOthers) break;
      TestSequence& other = others[static_cast<size_t>(o)];
      const int64_t num_tokens = std::min(random.Int(0, 6), 60 - other.num_computed);
      if (num_tokens > 0) chunks.push_back({.sequence = &other, .num_tokens = num_tokens});
    }
    const int64_t vocab_size = model_->config().vocab_size;
    const int64_t num_tokens = chunks[num_rows_before].num_tokens;
    const std::vector<float> logits = runner.Step(chunks);
    const auto first = logits.begin() + static_cast<int64_t>(num_rows_before) * vocab_size;
    got.insert(got.end(), first, first + num_tokens * vocab_size);
  }
  EXPECT_TRUE(SameBits(got, want));
}

// Preempted: its blocks are given to others and overwritten; recomputed from its tokens.
TEST_P(ModelBatchingTest, RecomputedAfterPreemption) {
  ASSERT_NE(model_, nullptr);
  ModelRunner runner(model_.get(), 8, &pool_);
  TestSequence sequence{.ids = RandomIds(30, 6)};
  TestSequence other{.ids = RandomIds(60, 7)};
  runner.Step({{.sequence = &sequence, .num_tokens = 20}});
  for (int i = 0; i < 9; ++i) runner.Step({{.sequence = &sequence, .num_tokens = 1}});
  const std::vector<float> want = runner.Step({{.sequence = &sequence, .num_tokens = 1}});
  runner.Free(&sequence);
  runner.Step({{.sequence = &other, .num_tokens = 60}});
  EXPECT_TRUE(SameBits(runner.Step({{.sequence = &sequence, .num_tokens = 30}}), want));
}

TEST_P(ModelBatchingTest, NumberOfThreadsDoesNotMatter) {
  ASSERT_NE(model_, nullptr);
  const std::vector<int32_t> ids = RandomIds(37, 8);
  ThreadPool one(1);
  ThreadPool five(5);
  ModelRunner a(model_.get(), 8, &one);
  ModelRunner b(model_.get(), 8, &five);
  EXPECT_TRUE(SameBits(a.Prefill(ids, 37), b.Prefill(ids, 37)));
}

INSTANTIATE_TEST_SUITE_P(, ModelBatchingTest, ::testing::ValuesIn(Cases()),
                         [](const ::testing::TestParamInfo<Case>& test) {
                           return test.param.name;
                         });

}  // namespace
}  // namespace nibble::engine
