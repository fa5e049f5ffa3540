// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/moe_layout_bench.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::bench {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

MoeLayoutBenchOptions Options() {
  MoeLayoutBenchOptions options;
  options.group.ranks = 4;
  options.group.transport = "threads";
  options.group.row_size = 200;
  options.group.seconds = 0.0;
  options.tokens = {1, 3, 37};
  options.codecs = {"float32", "bf16", "int8"};
  return options;
}

TEST(MoeLayoutBenchTest, BothLayoutsComputeTheSame) {
  const auto report = RunMoeLayoutBench(Options(), nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  const nlohmann::ordered_json& rows = (*report)["results"];
  ASSERT_EQ(rows.size(), 3U * 3 * 2);
  for (const nlohmann::ordered_json& row : rows) {
    const double least = row["codec"] == "float32" ? 100.0 : row["codec"] == "bf16" ? 40.0 : 30.0;
    EXPECT_GT(row["sqnr_db"].get<double>(), least) << row.dump();
    EXPECT_GT(row["median_us"].get<double>(), 0.0) << row.dump();
    EXPECT_EQ(row.contains("bytes_sent"), row["layout"] == "all-to-all") << row.dump();
  }
  EXPECT_EQ((*report)["ranks"], 4);
  // 37 tokens, 9 of them rank 0's: the others' 28 are scattered, its own 9 gathered by three peers.
  const int64_t own_bytes = int64_t{28 + 3 * 9} * 200 * 4;
  EXPECT_EQ(rows[12]["codec"], "float32");
  EXPECT_GT(rows[12]["bytes_sent"].get<int64_t>(), own_bytes) << rows[12].dump();
  EXPECT_LT(rows[14]["bytes_sent"].get<int64_t>(), rows[12]["bytes_sent"].get<int64_t>());
}

TEST(MoeLayoutBenchTest, OptionsOutOfRangeAreRefused) {
  MoeLayoutBenchOptions options = Options();
  options.num_experts = 6;
  options.num_experts_per_tok = 7;
  options.codecs = {"auto"};
  std::vector<std::string> violations;
  options.Validate(&violations);
  EXPECT_THAT(violations, Contains("--experts 6 does not divide among 4 ranks"));
  EXPECT_THAT(violations, Contains(HasSubstr("--experts-per-token")));
  EXPECT_THAT(violations, Contains(HasSubstr("--codecs auto: one of float32")));
}

}  // namespace
}  // namespace nibble::bench
