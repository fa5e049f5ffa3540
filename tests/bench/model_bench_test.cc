// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/model_bench.h"

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "bench/model_batch.h"

namespace nibble::bench {
namespace {

class ModelBenchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto model = engine::Model::Load(
        NIBBLE_SOURCE_DIR "/models/stories-llama",
        {.quantization = engine::Quantization::kW4A8, .isa = HostCpuFeatures().Best()}, &pool_);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    subject_ = {.model = model_.get(), .isa = HostCpuFeatures().Best(), .pool = &pool_};
  }

  ThreadPool pool_{2};
  std::unique_ptr<engine::Model> model_;
  ModelSubject subject_;
};

TEST_F(ModelBenchTest, Decode) {
  const auto result = RunDecodeBench(
      {.batches = {1, 3}, .contexts = {0, 20}, .steps = 2, .repetitions = 2}, subject_);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto& rows = (*result)["results"];
  ASSERT_EQ(rows.size(), 4U);
  EXPECT_EQ(rows[3]["batch"], 3);
  EXPECT_EQ(rows[3]["context"], 20);
  EXPECT_GT(rows[3]["tokens_per_s"], 0.0);
  EXPECT_GE(rows[3]["best_tokens_per_s"], rows[3]["tokens_per_s"]);
  // All but the embedding table, and keys and values of a context of 0, then 1 token.
  const int64_t step_bytes = model_->step_weight_bytes();
  EXPECT_LT(step_bytes, model_->weight_bytes());
  EXPECT_GT(rows[0]["bytes_per_step"], step_bytes);
  EXPECT_GT(rows[2]["bytes_per_step"], rows[0]["bytes_per_step"]);
}

TEST_F(ModelBenchTest, Prefill) {
  const auto result = RunPrefillBench(
      {.prompts = {3, 20}, .max_num_batched_tokens = 8, .repetitions = 1}, subject_);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto& rows = (*result)["results"];
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0]["chunk"], 3);
  EXPECT_EQ(rows[1]["chunk"], 8);
  EXPECT_GT(rows[1]["tokens_per_s"], 0.0);
}

TEST_F(ModelBenchTest, ContextsBeyondTheModelAreRefused) {
  const int64_t limit = model_->config().max_position_embeddings;
  const auto result =
      RunDecodeBench({.batches = {1}, .contexts = {limit}, .steps = 1, .repetitions = 1}, subject_);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().ToString().find(std::to_string(limit)), std::string::npos);
}

TEST_F(ModelBenchTest, ACaseThatFailsLosesNoOther) {
  const int64_t limit = model_->config().max_position_embeddings;
  const auto decode = RunDecodeBench(
      {.batches = {1}, .contexts = {0, limit}, .steps = 1, .repetitions = 1}, subject_);
  ASSERT_TRUE(decode.ok()) << decode.status();
  const auto& rows = (*decode)["results"];
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_GT(rows[0]["tokens_per_s"], 0.0);
  EXPECT_EQ(rows[1]["context"], limit);
  EXPECT_TRUE(rows[1]["error"].get<std::string>().starts_with("INVALID_ARGUMENT: "));
  const auto prefill = RunPrefillBench({.prompts = {limit + 1, 3}, .repetitions = 1}, subject_);
  ASSERT_TRUE(prefill.ok()) << prefill.status();
  EXPECT_EQ((*prefill)["results"][0]["prompt"], limit + 1);
  EXPECT_TRUE((*prefill)["results"][0].contains("error"));
  EXPECT_GT((*prefill)["results"][1]["tokens_per_s"], 0.0);
}

TEST(ModelBenchMoeTest, BytesOfExpertsThatWereNotReadAreNotToldAsRead) {
  ThreadPool pool(2);
  const Isa isa = HostCpuFeatures().Best();
  const auto model =
      engine::Model::Load(NIBBLE_SOURCE_DIR "/models/stories-mixtral",
                          {.quantization = engine::Quantization::kW4A8, .isa = isa}, &pool);
  ASSERT_TRUE(model.ok()) << model.status();
  const ModelSubject subject = {.model = model->get(), .isa = isa, .pool = &pool};
  const auto decode =
      RunDecodeBench({.batches = {2}, .contexts = {0}, .steps = 2, .repetitions = 1}, subject);
  ASSERT_TRUE(decode.ok()) << decode.status();
  EXPECT_GT((*decode)["results"][0]["tokens_per_s"], 0.0);
  EXPECT_FALSE((*decode)["results"][0].contains("bytes_per_step"));
  const auto prefill = RunPrefillBench({.prompts = {20}, .repetitions = 1}, subject);
  ASSERT_TRUE(prefill.ok()) << prefill.status();
  // A layer's: q and o of 256 x 512 each, k and v of 256 x 256 each, two of eight experts, router.
  const auto& row = (*prefill)["results"][0];
  const double ops = 2.0 * 20 * 4 * (256.0 * (2 * 512 + 2 * 256) + 2 * 3 * 256 * 512 + 8 * 256);
  EXPECT_NEAR(row["top_per_s"].get<double>() * row["median_ms"].get<double>() * 1e9, ops,
              ops * 1e-3);
}

TEST(ModelBenchOptionsTest, OptionsAreNamed) {
  std::vector<std::string> violations;
  DecodeBenchOptions{.batches = {0}, .contexts = {-1}, .steps = 0, .repetitions = 0}.Validate(
      &violations);
  EXPECT_EQ(violations.size(), 4U);
  violations.clear();
  PrefillBenchOptions{.prompts = {0}, .max_num_batched_tokens = 0, .repetitions = 0}.Validate(
      &violations);
  EXPECT_EQ(violations.size(), 3U);
}

}  // namespace
}  // namespace nibble::bench
