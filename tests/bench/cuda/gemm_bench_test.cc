// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

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
