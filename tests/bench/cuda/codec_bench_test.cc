// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/cuda/device.h"
#include "bench/cuda_codec_bench.h"

namespace nibble::bench {
namespace {

TEST(CudaCodecBench, EveryCodecHasItsRateAndItsFixedCost) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaCodecBenchOptions options = {
      .calls = 2,
      .meter = {.seconds = 0.0, .min_runs = 1, .rotated_bytes = 1000, .peak_rounds = 1}};
  options.codecs.bits = {32, 16, 4, 3};
  options.codecs.group_sizes = {32};
  options.codecs.rows = {5};
  options.codecs.row_size = 75;
  options.save = ::testing::TempDir() + "codec_bench-" + std::to_string(getpid());
  const auto result = RunCudaCodecBench(options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*result)["bench"], "codec");
  EXPECT_EQ((*result)["goals"]["least_share_of_read"], 0.8);
  EXPECT_EQ((*result)["goals"]["fixed_us"], 6.0);
  std::set<std::string> codecs;
  for (const auto& row : (*result)["results"]) {
    codecs.insert(row["codec"].get<std::string>());
    double least = 1e9;
    for (const std::string step : {"encode", "decode", "reduce"}) {
      EXPECT_GT(row[step + "_gb_per_s"], 0.0) << row;
      EXPECT_GT(row[step + "_fixed_us"], 0.0) << row;
      least = std::min(least, row[step + "_share_of_read"].get<double>());
    }
    EXPECT_EQ(row["least_share_of_read"], least) << row;
    EXPECT_GT(row["fixed_us"], 0.0) << row;
  }
  EXPECT_EQ(codecs.size(), 2U + 2 * 4);
  EXPECT_TRUE(codecs.contains("int4 g32 hadamard"));
  std::ifstream saved(options.save);
  EXPECT_EQ(nlohmann::ordered_json::parse(saved, nullptr, false), *result);
  std::filesystem::remove(options.save);
}

}  // namespace
}  // namespace nibble::bench
