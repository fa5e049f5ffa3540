// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/grouped_gemm_bench.h"

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/cpu_features.h"

namespace nibble::bench {
namespace {

TEST(GroupedGemmBenchTest, MeasuresGroupedBesideDense) {
  ThreadPool pool(2);
  GroupedGemmBenchOptions options;
  options.shapes = {{"small", 40, 160, 6, 2}, {"other", 8, 32, 2, 1}};
  options.formats = {"w4a8-folded", "bf16"};
  options.tokens = {1, 7};
  options.filter = "small";
  options.seconds = 0.0;
  options.rotated_bytes = 1 << 16;
  const auto result = RunGroupedGemmBench(options, HostCpuFeatures().Best(), &pool, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*result)["bench"], "grouped-gemm");
  ASSERT_EQ((*result)["results"].size(), 4U);
  const auto& one = (*result)["results"][0];
  EXPECT_EQ(one["shape"], "small");
  EXPECT_EQ(one["experts_hit"], 2);
  EXPECT_EQ(one["rows_per_expert"], 1);
  EXPECT_EQ(one["random_hit"], 2);
  EXPECT_GE(one["runs"], 5);
  const auto& seven = (*result)["results"][1];
  EXPECT_EQ(seven["tokens"], 7);
  EXPECT_EQ(seven["experts_hit"], 6);
  EXPECT_GT(seven["rows_per_expert"], 2.0);
  EXPECT_LE(seven["random_hit"], 6);
  for (const auto& row : (*result)["results"]) {
    EXPECT_GT(row["grouped_us"], 0.0);
    EXPECT_GT(row["dense_us"], 0.0);
    EXPECT_GT(row["share_of_dense"], 0.0);
    EXPECT_GT(row["random_us"], 0.0);
  }
}

TEST(GroupedGemmBenchTest, AFilterThatNothingMatchesIsAnError) {
  ThreadPool pool(1);
  GroupedGemmBenchOptions options;
  options.filter = "dense";
  const auto result = RunGroupedGemmBench(options, HostCpuFeatures().Best(), &pool, nullptr);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().ToString().find("dense"), std::string::npos);
}

TEST(GroupedGemmBenchTest, OptionsAreNamed) {
  GroupedGemmBenchOptions options;
  options.shapes = {{"s", 0, 0, 4, 5}};
  options.formats = {"w5a8"};
  options.tokens = {0};
  options.seconds = -1.0;
  std::vector<std::string> violations;
  options.Validate(&violations);
  EXPECT_EQ(violations.size(), 6U);
}

}  // namespace
}  // namespace nibble::bench
