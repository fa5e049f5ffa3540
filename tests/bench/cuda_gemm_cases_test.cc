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
  EXPECT_FALSE(sized->HasExperts());
  EXPECT_EQ(sized->NumRows(7), 7);
  for (const char* bad : {"", "x", "12x", "x12", "8b", "0x5", "12x13x14", "2097152x1", "-1x4",
                          "4x4x1x1", "4x4x8x0", "4x4x8x9", "4x4x257x1", "4x4x256x17", "4x4x8x2x1",
                          "4x4x8x", "4x4xx2", "99999999999999999999x1"}) {
    EXPECT_EQ(FindCudaGemmShape(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(CudaGemmCases, AllThatHaveNamesAreMeasured) {
  std::vector<std::string> names;
  for (const CudaGemmShape& shape : CudaGemmShapes()) names.push_back(shape.name);
  EXPECT_EQ(names.size(), 10U);
  EXPECT_EQ(CudaGemmBenchOptions().shapes, names);
}

TEST(CudaGemmCases, AFilterThatNothingMatchesIsToldBeforeADeviceIsLookedFor) {
  std::vector<std::string> violations;
  CudaGemmBenchOptions{.filter = "w4a8"}.Validate(&violations);
  EXPECT_TRUE(violations.empty()) << violations[0];
  CudaGemmBenchOptions{.filter = "foo"}.Validate(&violations);
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0],
            "--filter 'foo': a part of one of bf16-cublaslt, bf16, w8a8-cublaslt, w4a8-folded, "
            "w4a8-integer, w4a8-float, w8a8, with --device cuda");
}

TEST(CudaGemmCases, ExpertsHaveRowsForEachOfATokens) {
  const auto mixtral = FindCudaGemmShape("mixtral-down");
  ASSERT_TRUE(mixtral.ok());
  EXPECT_EQ(mixtral->num_experts, 8);
  EXPECT_FALSE(mixtral->gathers);
  EXPECT_EQ(mixtral->NumRows(7), 14);
  const auto sized = FindCudaGemmShape("72x128x5x3");
  ASSERT_TRUE(sized.ok());
  EXPECT_TRUE(sized->HasExperts());
  EXPECT_EQ(sized->num_experts, 5);
  EXPECT_EQ(sized->num_experts_per_tok, 3);
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
