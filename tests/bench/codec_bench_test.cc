// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/codec_bench.h"

#include <set>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::bench {
namespace {

TEST(CodecBenchTest, EveryCodecHasARowPerInstructionSet) {
  ThreadPool pool(2);
  CodecBenchOptions options;
  options.bits = {32, 4};
  options.group_sizes = {32};
  options.variants = {"plain", "log2", "spikes", "hadamard"};
  options.rows = {11};
  options.row_size = 200;
  options.seconds = 0.0;
  const Isa isa = HostCpuFeatures().Best();
  const auto result = RunCodecBench(options, isa, &pool, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  const size_t isas = isa >= Isa::kAvx512Vnni ? 3 : isa == Isa::kAvx2 ? 2 : 1;
  ASSERT_EQ((*result)["results"].size(), 5 * isas);  // float32 has one variant
  std::set<std::string> codecs;
  for (const auto& row : (*result)["results"]) {
    codecs.insert(row["codec"].get<std::string>());
    EXPECT_GT(row["encode_gvalues_per_s"], 0.0) << row;
    EXPECT_GT(row["decode_gb_per_s"], 0.0) << row;
    EXPECT_GT(row["reduce_share_of_read"], 0.0) << row;
    EXPECT_GT(row["gaussian_db"], row["codec"] == "float32" ? 130.0 : 15.0) << row;
  }
  EXPECT_EQ(codecs.size(), 5U);
  EXPECT_TRUE(codecs.contains("int4 g32 hadamard"));
}

TEST(CodecBenchTest, NamesWhatIsOutOfRange) {
  CodecBenchOptions options;
  std::vector<std::string> violations;
  options.Validate(&violations);
  EXPECT_TRUE(violations.empty());
  options.bits = {7};
  options.group_sizes = {int64_t{1} << 40};
  options.variants = {"fast"};
  options.rows = {0};
  options.ranks = 65;
  options.Validate(&violations);
  EXPECT_EQ(violations.size(), 5U);
}

}  // namespace
}  // namespace nibble::bench
