// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/random_model.h"

#include <cmath>
#include <utility>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "bench/model_bench.h"

namespace nibble::bench {
namespace {

TEST(RandomModelTest, ShapesHaveThePrefix) {
  EXPECT_EQ(RandomShapeOf("random:llama-3-8b"), "llama-3-8b");
  EXPECT_EQ(RandomShapeOf("random:"), "");
  EXPECT_EQ(RandomShapeOf("models/random"), std::nullopt);
}

// As published.
TEST(RandomModelTest, ConfigsAreTheModels) {
  const std::pair<const char*, int64_t> kParameters[] = {{"llama-3.2-1b", 1235814400},
                                                         {"llama-3.2-3b", 3212749824},
                                                         {"llama-3-8b", 8030261248},
                                                         {"llama-3-70b", 70553706496},
                                                         {"mixtral-8x7b", 46702792704}};
  for (const auto& [shape, parameters] : kParameters) {
    const auto config = RandomModelConfig(shape);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->num_parameters(), parameters) << shape;
  }
}

TEST(RandomModelTest, AnUnknownShapeNamesTheOthers) {
  for (const char* const unknown : {"llama-4", ""}) {
    const auto config = RandomModelConfig(unknown);
    ASSERT_FALSE(config.ok()) << unknown;
    EXPECT_NE(config.status().message().find("llama-3-8b"), absl::string_view::npos);
  }
}

TEST(RandomModelTest, OneThatDoesNotFitIsRefused) {
  auto config = RandomModelConfig("llama-3-70b");
  ASSERT_TRUE(config.ok()) << config.status();
  config->num_layers = 1000000;
  config->sliding_window.assign(1000000, 0);
  ThreadPool pool(1);
  const auto model = MakeRandomModel(*config, {}, &pool);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(model.status().message().find("a random model needs"), absl::string_view::npos)
      << model.status();
}

class RandomShapeTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Tiny, RandomShapeTest, ::testing::Values("tiny", "tiny-mixtral"));

TEST_P(RandomShapeTest, ComputesFiniteLogitsInEveryForm) {
  const auto config = RandomModelConfig(GetParam());
  ASSERT_TRUE(config.ok()) << config.status();
  ThreadPool pool(2);
  int64_t last_bytes = 0;
  // From the smallest in memory to the largest.
  for (const engine::Quantization quantization :
       {engine::Quantization::kW4A8, engine::Quantization::kW8A8, engine::Quantization::kNone}) {
    const auto model = MakeRandomModel(
        *config, {.quantization = quantization, .isa = HostCpuFeatures().Best()}, &pool);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_GT((*model)->step_weight_bytes(), last_bytes) << (*model)->quantization_name();
    last_bytes = (*model)->step_weight_bytes();
    const auto cache = (*model)->MakeKvCache(1, 16);
    ASSERT_TRUE(cache.ok()) << cache.status();
    std::vector<float> logits(static_cast<size_t>(config->vocab_size), NAN);
    engine::StepPlan plan;
    plan.token_ids = {3, 500, 7};
    plan.positions = {0, 1, 2};
    plan.slot_mapping = {0, 1, 2};
    plan.query_start = {0, 3};
    plan.context_lens = {3};
    plan.block_tables = {0};
    plan.max_blocks_per_seq = 1;
    plan.logits_indices = {2};
    const absl::Status status = (*model)->Forward(plan, cache->get(), logits.data(), &pool);
    ASSERT_TRUE(status.ok()) << status;
    for (const float logit : logits) ASSERT_TRUE(std::isfinite(logit));
    EXPECT_NE(logits[0], logits[1]);
  }
}

TEST_P(RandomShapeTest, BenchesTakeIt) {
  const auto config = RandomModelConfig(GetParam());
  ASSERT_TRUE(config.ok()) << config.status();
  ThreadPool pool(2);
  const Isa isa = HostCpuFeatures().Best();
  const auto model =
      MakeRandomModel(*config, {.quantization = engine::Quantization::kW4A8, .isa = isa}, &pool);
  ASSERT_TRUE(model.ok()) << model.status();
  const auto result =
      RunDecodeBench({.batches = {2}, .contexts = {4}, .steps = 2, .repetitions = 1},
                     {.model = model->get(), .isa = isa, .pool = &pool});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*result)["model"]["quantization"], "random, w4a8 (folded), head w8a8");
  EXPECT_FALSE((*result)["results"][0].contains("ops"));
}

}  // namespace
}  // namespace nibble::bench
