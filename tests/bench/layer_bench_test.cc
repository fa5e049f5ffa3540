// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/layer_bench.h"

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "bench/attention_bench.h"

namespace nibble::bench {
namespace {

TEST(LayerBenchTest, EveryOpHasARowAndTheSharesAddUp) {
  ThreadPool pool(2);
  LayerBenchOptions options;
  options.shape.clear();
  options.model = NIBBLE_SOURCE_DIR "/models/stories-llama";
  options.batches = {2};
  options.contexts = {17};
  options.prompts = {5};
  options.seconds = 0.0;
  options.rotated_bytes = 1 << 20;
  for (const char* weights : {"w4a8-folded", "bf16"}) {
    options.weights = weights;
    options.kv_cache_dtype = options.weights == "bf16" ? "int8" : "bfloat16";
    const auto result = RunLayerBench(options, HostCpuFeatures().Best(), &pool, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    const auto& rows = (*result)["results"];
    ASSERT_EQ(rows.size(), 22U);  // two cases of ten ops and the layer
    EXPECT_EQ(rows[0]["phase"], "decode");
    EXPECT_EQ(rows[0]["rows"], 2);
    EXPECT_EQ(rows[10]["op"], "layer");
    EXPECT_EQ(rows[11]["phase"], "prefill");
    EXPECT_EQ(rows[11]["rows"], 5);
    for (const auto& row : rows) {
      const bool product = row["op"] == "qkv" || row["op"] == "o" || row["op"] == "gate_up" ||
                           row["op"] == "down" || row["op"] == "attention";
      EXPECT_GT(row["median_us"], 0.0) << row;
      EXPECT_EQ(row.contains("share_of_roofline"), product || row["op"] == "layer") << row;
    }
  }
}

TEST(LayerBenchTest, ShapesByNameAndByModel) {
  const auto named = FindLayerShape("llama-3.2-1b");
  ASSERT_TRUE(named.ok());
  EXPECT_EQ(named->hidden_size, 2048);
  EXPECT_EQ(named->intermediate_size, 8192);
  const auto unknown = FindLayerShape("llama-9");
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.status().ToString().find("llama-3-8b"), std::string::npos);
}

TEST(LayerBenchTest, OptionsAreNamed) {
  LayerBenchOptions options;
  options.weights = "w5a8";
  options.kv_cache_dtype = "int3";
  options.batches = {0};
  options.contexts = {};
  options.prompts = {1};
  std::vector<std::string> violations;
  options.Validate(&violations);
  EXPECT_EQ(violations.size(), 5U);
}

TEST(AttentionBenchTest, CasesBeyondTheCacheLimitAreToldAndLeftOut) {
  ThreadPool pool(2);
  AttentionBenchOptions options;
  options.dtypes = {"bfloat16", "int8"};
  options.head_dims = {64};
  options.sequences = {1};
  options.contexts = {40, 1 << 20};
  options.prefills = {9};
  options.seconds = 0.0;
  options.max_cache_bytes = int64_t{1} << 20;
  const auto result = RunAttentionBench(options, HostCpuFeatures().Best(), &pool, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto& rows = (*result)["results"];
  ASSERT_EQ(rows.size(), 6U);
  EXPECT_GT(rows[0]["share_of_read"], 0.0);
  EXPECT_TRUE(rows[1].contains("left_out"));
  EXPECT_EQ(rows[2]["new_tokens"], 9);
  EXPECT_EQ(rows[3]["dtype"], "int8");

  options.num_heads = 7;
  options.dtypes = {"int3"};
  std::vector<std::string> violations;
  options.Validate(&violations);
  EXPECT_EQ(violations.size(), 2U);
}

}  // namespace
}  // namespace nibble::bench
