// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "gtest/gtest.h"

#include "bench/cuda_gemm_bench.h"

namespace nibble::bench {
namespace {

TEST(CudaGemmCases, ShapesHaveNamesOrSizes) {
  const auto named = FindCudaGemmShape("8b-gate-up");
  ASSERT_TRUE(named.ok());
  EXPECT_EQ(named->n, 28672);
  EXPECT_EQ(named->k, 4096);
  const auto sized = FindCudaGemmShape("640x96");
  ASSERT_TRUE(sized.ok());
  EXPECT_EQ(sized->n, 640);
  EXPECT_EQ(sized->k, 96);
  for (const char* bad : {"", "x", "12x", "x12", "8b", "0x5", "12x13x14", "2097152x1", "-1x4",
                          "99999999999999999999x1"}) {
    EXPECT_EQ(FindCudaGemmShape(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(CudaGemmCases, OptionsAreNamed) {
  CudaGemmBenchOptions options;
  std::vector<std::string> violations;
  options.Validate(&violations);
  EXPECT_TRUE(violations.empty());
  options.shapes = {"8b-o", "9b"};
  options.m = {0};
  options.seconds = -1.0;
  options.Validate(&violations);
  ASSERT_EQ(violations.size(), 3U);
  EXPECT_NE(violations[0].find("9b"), std::string::npos);
  EXPECT_NE(violations[1].find("--m"), std::string::npos);
  EXPECT_NE(violations[2].find("--seconds"), std::string::npos);
}

}  // namespace
}  // namespace nibble::bench
