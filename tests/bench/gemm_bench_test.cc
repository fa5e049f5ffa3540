// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/gemm_bench.h"

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/cpu_features.h"
#include "bench/gemm_subject.h"
#include "kernels/gemm/gemm_variant.h"

namespace nibble::bench {
namespace {

TEST(GemmSubjectTest, EveryKindPacksAndMultiplies) {
  ThreadPool pool(2);
  for (const WeightKind& kind : WeightKinds()) {
    kernels::GemmDesc desc = kind.desc;
    desc.n = 33;
    desc.k = 130;
    const auto weight = PackRandomWeight(desc, HostCpuFeatures().Best(), &pool);
    ASSERT_TRUE(weight.ok()) << kind.name << ": " << weight.status();
    GemmActivations activations(3, desc.n, desc.k, &pool);
    const kernels::GemmArgs args = activations.args();
    kernels::Run(**weight, args, &pool);
    bool any = false;
    for (int64_t i = 0; i < 3 * desc.n; ++i) any = any || args.d[i] != 0.0F;
    EXPECT_TRUE(any) << kind.name;
    EXPECT_EQ(FindWeightKind(kind.name), &kind);
  }
  EXPECT_EQ(FindWeightKind("w5a8"), nullptr);
}

TEST(GemmBenchTest, MeasuresTheVariantsThatTheFilterNames) {
  const Isa best = HostCpuFeatures().Best();
  if (best < Isa::kAvx2) GTEST_SKIP() << "no variant above the reference";
  ThreadPool pool(2);
  GemmBenchOptions options;
  options.n = 64;
  options.k = 256;
  options.m = {1, 2};
  options.seconds = 0.0;
  options.rotated_bytes = 1 << 16;
  options.filter = "w4a8_folded_avx2";
  const auto result = RunGemmBench(options, &pool, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*result)["bench"], "gemm");
  EXPECT_GT((*result)["peaks"]["avx2"]["read_gb_per_s"], 0.0);
  ASSERT_EQ((*result)["results"].size(), 2U);
  const auto& row = (*result)["results"][1];
  EXPECT_EQ(row["variant"], "w4a8_folded_avx2");
  EXPECT_EQ(row["m"], 2);
  EXPECT_GE(row["runs"], 5);
  EXPECT_GE(row["median_us"], row["best_us"]);
  EXPECT_GT(row["share_of_peak"], 0.0);
  EXPECT_GT(row["peaks"]["int8_top_per_s"], 0.0);
}

TEST(GemmBenchTest, AFilterThatNothingMatchesIsAnError) {
  ThreadPool pool(1);
  GemmBenchOptions options;
  options.filter = "w5a8";
  const auto result = RunGemmBench(options, &pool, nullptr);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().ToString().find("w5a8"), std::string::npos);
}

TEST(GemmBenchTest, OptionsAreNamed) {
  GemmBenchOptions options;
  options.n = 0;
  options.k = 1 << 20;
  options.m = {1 << 20};
  options.seconds = -1.0;
  std::vector<std::string> violations;
  options.Validate(&violations);
  EXPECT_EQ(violations.size(), 4U);
}

}  // namespace
}  // namespace nibble::bench
