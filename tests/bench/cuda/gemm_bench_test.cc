// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/cuda/device.h"
#include "bench/cuda/gemm_variants.h"
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
  const std::vector<std::string>& known = CudaGemmVariantNames();
  for (const std::string& name : experts) {
    EXPECT_EQ(std::count(known.begin(), known.end(), name), 1) << name;
  }
  for (const std::string& name : dense) {
    EXPECT_EQ(std::count(known.begin(), known.end(), name), 1) << name;
  }
  for (const auto& row : (*result)["results"]) {
    EXPECT_EQ(row["times_bf16_of"], result->contains("cublaslt") ? "bf16" : "bf16-cublaslt") << row;
  }
  EXPECT_EQ(found_dense, dense);
  EXPECT_EQ(found_experts, experts);
}

// Adds zeros to nothing; fails for `bad` tokens.
class FakeProduct final : public GemmSubject {
 public:
  FakeProduct(const DeviceMeter& meter, int64_t bad) : meter_(meter), bad_(bad) {}
  static absl::StatusOr<std::unique_ptr<FakeProduct>> Create(const DeviceMeter& meter,
                                                             int64_t bad) {
    auto product = std::make_unique<FakeProduct>(meter, bad);
    NIBBLE_ASSIGN_OR_RETURN(product->byte_, gpu::DeviceBuffer<uint8_t>::Create(1));
    return product;
  }

  absl::Status Prepare(int64_t num_tokens) override {
    return num_tokens == bad_ ? Unavailable("{} tokens", num_tokens) : absl::OkStatus();
  }
  absl::Status Run(int /*call*/) override {
    return gpu::ZeroDevice(byte_.data(), 1, meter_.stream());
  }
  int num_calls() const override { return 1; }
  double bytes() const override { return 1.0; }
  bool is_int8() const override { return false; }
  std::string kernel() const override { return "fake"; }

 private:
  const DeviceMeter& meter_;
  const int64_t bad_;
  gpu::DeviceBuffer<uint8_t> byte_;
};

TEST(CudaGemmBench, WhatFailsIsARowAndTheOthersAreMeasured) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  const CudaGemmBenchOptions options = SmallOptions();
  const auto meter = DeviceMeter::Create(0, {.seconds = 0.0, .min_runs = 1});
  ASSERT_TRUE(meter.ok()) << meter.status();
  const DevicePeaks peaks{.read_bytes_per_s = 1.0, .int8_op_per_s = 1.0, .bf16_op_per_s = 1.0};
  Report report("gemm", {}, nullptr);
  MeasureVariants(
      {.options = &options, .meter = &*meter, .peaks = &peaks}, {"72x128", 72, 128},
      {{"a", [&] { return FakeProduct::Create(*meter, 1); }},
       {"b", [] { return absl::StatusOr<std::unique_ptr<GemmSubject>>(Unavailable("no memory")); }},
       {"c", [&] { return FakeProduct::Create(*meter, 0); }}},
      &report);
  const auto rows = report.Finish(1, {})["results"];
  ASSERT_EQ(rows.size(), 5U) << rows;
  EXPECT_EQ(rows[0]["m"], 1);
  EXPECT_EQ(rows[0]["error"], "UNAVAILABLE: 1 tokens");
  EXPECT_FALSE(rows[0].contains("median_us"));
  EXPECT_GT(rows[1]["median_us"], 0.0);  // the same one, 17 tokens
  EXPECT_EQ(rows[2]["variant"], "b");
  EXPECT_EQ(rows[2]["error"], "UNAVAILABLE: no memory");
  EXPECT_FALSE(rows[2].contains("m"));
  EXPECT_EQ(rows[3]["variant"], "c");
  EXPECT_FALSE(rows[4].contains("error"));
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

TEST(CudaGemmBench, AFilterThatNothingHereMatchesIsAnError) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaGemmBenchOptions options = SmallOptions();
  options.filter = "w8a8-cublaslt";
  options.shapes = {"24x64x4x2"};  // of experts there is none
  ThreadPool pool(1);
  EXPECT_EQ(RunCudaGemmBench(options, &pool, nullptr).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace nibble::bench
