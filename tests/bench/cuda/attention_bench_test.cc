// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/cuda/device.h"
#include "bench/cuda_attention_bench.h"

namespace nibble::bench {
namespace {

CudaAttentionBenchOptions SmallOptions() {
  return {.shapes = {"4x2x64"},
          .dtypes = {"bfloat16", "int8"},
          .sequences = {1, 3},
          .contexts = {40},
          .prefills = {17},
          .scattered = true,
          .calls = 2,
          .meter = {.seconds = 0.0, .min_runs = 1, .rotated_bytes = 4096, .peak_rounds = 1}};
}

TEST(CudaAttentionBench, DecodeAndPrefillOfEveryCache) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  const auto result = RunCudaAttentionBench(SmallOptions(), nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*result)["bench"], "attention");
  EXPECT_GT((*result)["peaks"]["read_gb_per_s"], 0.0);
  EXPECT_GT((*result)["peaks"]["bf16_tflop_per_s"], 0.0);
  size_t num_nibble = 0;
  for (const auto& row : (*result)["results"]) {
    EXPECT_GT(row["median_us"], 0.0) << row;
    EXPECT_EQ(row["phase"], row["new_tokens"] == 1 ? "decode" : "prefill") << row;
    if (row["backend"] != "nibble") continue;
    ++num_nibble;
    // The library computes with bfloat16 alone, where the build has it.
    const bool has_peer = !result->contains("flashinfer") && row["dtype"] == "bfloat16";
    EXPECT_EQ(row.contains("times_flashinfer"), has_peer) << row;
  }
  EXPECT_EQ(num_nibble, 2U * (2 + 1));
  // What was read of the cache: keys and values, and an int8's scales.
  const auto bytes = [&](size_t row) {
    const auto& at = (*result)["results"][row];
    return at["gb_per_s"].get<double>() * at["median_us"].get<double>() * 1e3;
  };
  if (result->contains("flashinfer")) {  // no rows between ours
    EXPECT_NEAR(bytes(0), 2 * 40 * 2 * 64 * 2, 5);
    EXPECT_NEAR(bytes(1), 3 * 2 * 40 * 2 * 64 * 2, 15);
    EXPECT_NEAR(bytes(3), 2 * 40 * 2 * (64 + 4), 5);
  }
}

TEST(CudaAttentionBench, CachesThatAreTooLargeAreLeftOut) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaAttentionBenchOptions options = SmallOptions();
  options.max_cache_bytes = 1000;
  const auto result = RunCudaAttentionBench(options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ((*result)["results"].size(), 6U);
  EXPECT_EQ((*result)["results"][0]["left_out"], "20480 bytes of cache, the limit is 1000");
}

// A cache of a terabyte, which no device has.
TEST(CudaAttentionBench, ACaseThatFailsLosesNoOther) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaAttentionBenchOptions options = SmallOptions();
  options.shapes = {"1024x1024x256"};
  options.dtypes = {"bfloat16"};
  options.sequences = {1};
  options.contexts = {1 << 20, 3};
  options.prefills = {};
  options.max_cache_bytes = int64_t{1} << 46;
  options.meter.rotated_bytes = 1;
  options.calls = 1;
  const auto result = RunCudaAttentionBench(options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto& rows = (*result)["results"];
  EXPECT_EQ(rows[0]["context"], 1 << 20);
  EXPECT_TRUE(rows[0].contains("error")) << rows[0];
  EXPECT_EQ(rows.back()["context"], 3);
  EXPECT_GT(rows.back()["median_us"], 0.0);
  options.contexts = {1 << 20};
  EXPECT_EQ(RunCudaAttentionBench(options, nullptr).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace nibble::bench
