// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/moe_bench.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::bench {
namespace {

using ::testing::HasSubstr;

TEST(MoeBenchTest, ARowForEveryShapeAndNumberOfTokens) {
  ThreadPool pool(2);
  MoeBenchOptions options;
  options.shapes = {"stories-mixtral"};
  options.tokens = {1, 3, 40};
  options.seconds = 0.0;
  options.rotated_bytes = 1 << 20;
  for (const char* weights : {"w4a8-folded", "bf16"}) {
    options.weights = weights;
    const auto result = RunMoeBench(options, HostCpuFeatures().Best(), &pool, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ((*result)["bench"], "moe");
    const auto& shape = (*result)["shapes"]["stories-mixtral"];
    // Two experts are what dense is; bytes per channel make up the rest.
    EXPECT_NEAR(shape["dense_bytes"].get<double>() / shape["expert_bytes"].get<double>(), 2.0, 0.1);
    const auto& rows = (*result)["results"];
    ASSERT_EQ(rows.size(), 3U);
    EXPECT_EQ(rows[0]["experts_hit"], 2);
    EXPECT_EQ(rows[0]["uniform_hit"], 2);
    EXPECT_LE(rows[0]["over_predicted"], 1.0);
    EXPECT_GT(rows[1]["experts_hit"], 2);
    EXPECT_LE(rows[1]["experts_hit"], 6);
    EXPECT_GT(rows[2]["experts_hit"], 6.5);
    for (const auto& row : rows) {
      EXPECT_GE(row["runs"], 5);
      for (const char* key :
           {"moe_us", "dense_us", "moe_over_dense", "gb_per_s", "share_of_read", "dense_gb_per_s",
            "share_of_roofline", "tokens_per_s", "over_predicted", "router_us", "route_us",
            "permute_us", "combine_us"}) {
        EXPECT_GT(row[key], 0.0) << key;
      }
    }
  }
}

TEST(MoeBenchTest, OptionsAreNamed) {
  MoeBenchOptions options;
  std::vector<std::string> violations;
  options.Validate(&violations);
  EXPECT_TRUE(violations.empty());
  options.shapes = {"mixtral-9x9b"};
  options.weights = "w5a8";
  options.tokens = {0};
  options.seconds = -1.0;
  options.Validate(&violations);
  EXPECT_THAT(violations, ::testing::ElementsAre(HasSubstr("qwen3-30b-a3b"), HasSubstr("w5a8"),
                                                 HasSubstr("--tokens"), HasSubstr("--seconds")));
}

}  // namespace
}  // namespace nibble::bench
