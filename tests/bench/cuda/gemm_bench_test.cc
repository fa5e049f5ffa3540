// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/cuda/device.h"
#include "bench/cuda_gemm_bench.h"

namespace nibble::bench {
namespace {

CudaGemmBenchOptions SmallOptions() {
  return {.shapes = {"72x128"},
          .m = {1, 17},
          .filter = "w4a8",
          .seconds = 0.0,
          .min_runs = 1,
          .calls = 1,
          .rotated_bytes = 1,
          .peak_rounds = 1};
}

TEST(CudaGemmBench, MeasuresEveryFormOfAShape) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  ThreadPool pool(1);
  const auto result = RunCudaGemmBench(SmallOptions(), &pool, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*result)["bench"], "gemm");
  EXPECT_TRUE(result->contains("device"));
  EXPECT_TRUE((*result)["peaks"].contains("read_gb_per_s"));
  EXPECT_TRUE((*result)["peaks"].contains("int8_top_per_s"));
  ASSERT_EQ((*result)["results"].size(), 6U);
  EXPECT_EQ((*result)["results"][0]["variant"], "w4a8-folded");
  EXPECT_EQ((*result)["results"][1]["m"], 17);
}

// Every variant there is, cuBLASLt's too: in the emulator it is there.
TEST(CudaGemmBench, EveryVariantRuns) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaGemmBenchOptions options = SmallOptions();
  options.filter = "";
  options.shapes = {"40x80", "24x64x4x2"};
  ThreadPool pool(1);
  const auto result = RunCudaGemmBench(options, &pool, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  std::vector<std::string> dense = {"bf16", "w4a8-folded", "w4a8-integer", "w4a8-float", "w8a8"};
  std::vector<std::string> experts = dense;
  if (!result->contains("cublaslt")) {
    dense = {"bf16-cublaslt", "w8a8-cublaslt", "w4a8-folded", "w4a8-integer", "w4a8-float", "w8a8"};
    experts.insert(experts.begin(), "bf16-cublaslt");
  }
  std::vector<std::string> found_dense;
  std::vector<std::string> found_experts;
  for (const auto& row : (*result)["results"]) {
    EXPECT_GT(row["bytes"], 0) << row;
    if (row["m"] != 17) continue;
    (row["shape"] == "40x80" ? found_dense : found_experts).push_back(row["variant"]);
  }
  EXPECT_EQ(found_dense, dense);
  EXPECT_EQ(found_experts, experts);
}

// One token goes to 2 of 4 experts, 17 of them to all.
TEST(CudaGemmBench, ExpertsAreReadAsTheTokensChoose) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaGemmBenchOptions options = SmallOptions();
  options.filter = "w4a8-folded";
  options.shapes = {"24x64x4x2"};
  ThreadPool pool(1);
  const auto result = RunCudaGemmBench(options, &pool, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto& rows = (*result)["results"];
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_GT(rows[0]["bytes"], 2 * 24 * 64 / 2);  // 4 bits a weight and some scales
  EXPECT_EQ(rows[1]["bytes"], 2 * rows[0]["bytes"].get<int64_t>());
}

TEST(CudaGemmBench, AFilterThatNothingMatchesIsAnError) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaGemmBenchOptions options = SmallOptions();
  options.filter = "nothing";
  ThreadPool pool(1);
  EXPECT_EQ(RunCudaGemmBench(options, &pool, nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble::bench
