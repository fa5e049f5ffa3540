// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks share a device here: that all is measured, not how fast it is.

#include <cuda_runtime.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/dynamic_library.h"
#include "bench/cuda/allreduce_rank.h"
#include "bench/cuda_allreduce_bench.h"
#include "tests/comm/gpu/fake_nccl.h"
#include "tests/testing/beside_program.h"

namespace nibble::bench {
namespace {

using ::testing::HasSubstr;

CudaAllReduceBenchOptions SmallOptions() {
  return {.transport = "p2p",
          .sizes = {300, 1200},
          .row_size = 96,
          .codecs = {"int4", "int3"},
          .group_size = 32,
          .calls = 2,
          .meter = {.seconds = 0.0, .min_runs = 1, .rotated_bytes = 4096, .peak_rounds = 1},
          .max_hold_seconds = 0.0,
          .ranks_on_one_device = 2};
}

// Rows by codec and what was done.
std::map<std::pair<std::string, std::string>, int> CountRows(const nlohmann::ordered_json& result) {
  std::map<std::pair<std::string, std::string>, int> counts;
  for (const auto& row : result["results"]) {
    EXPECT_GT(row["median_us"], 0.0) << row;
    ++counts[{row["codec"].get<std::string>(), row["op"].get<std::string>()}];
  }
  return counts;
}

TEST(CudaAllReduceBench, EveryCodecAlgorithmAndSize) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaAllReduceBenchOptions options = SmallOptions();
  options.save = ::testing::TempDir() + "allreduce_bench-" + std::to_string(getpid());
  const auto result = RunCudaAllReduceBench(options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  std::ifstream saved(options.save);
  EXPECT_EQ(nlohmann::ordered_json::parse(saved, nullptr, false), *result);
  std::filesystem::remove(options.save);
  EXPECT_EQ((*result)["ranks"], 2);
  EXPECT_EQ((*result)["is_timing"], false);
  EXPECT_THAT((*result)["left_out"]["nccl"].get<std::string>(), HasSubstr("a device for each"));
  auto counts = CountRows(*result);
  // One-shot and two-shot of both sizes.
  for (const char* codec : {"bf16", "int4", "int3"}) {
    EXPECT_EQ((counts[{codec, "sum"}]), 4) << codec;
    EXPECT_EQ((counts[{codec, "sum, norm"}]), 4) << codec;
    // What has no fused kernel has no row that says so.
    EXPECT_EQ((counts[{codec, "sum+norm"}]), codec == std::string("int3") ? 0 : 4) << codec;
  }
  EXPECT_EQ((*result)["results"][0]["bytes"], 192);  // whole rows
  for (const auto& row : (*result)["results"]) {
    EXPECT_EQ(row.contains("times_separate"), row["op"] == "sum+norm") << row;
    EXPECT_TRUE(row.contains("speedup")) << row;
    EXPECT_EQ(row["transport"], "p2p") << row;
  }
  ASSERT_EQ((*result)["crossovers"].size(), 2U);
  EXPECT_EQ((*result)["crossovers"][0]["codec"], "int4");
  EXPECT_TRUE((*result)["crossovers"][0].contains("fixed_over_bf16_us"));
}

TEST(CudaAllReduceBench, WhatMeasuringChoosesIsNamed) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaAllReduceBenchOptions options = SmallOptions();
  options.codecs = {"auto"};
  const auto result = RunCudaAllReduceBench(options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ((*result)["auto"].size(), 2U);
  EXPECT_EQ((*result)["auto"][0]["bytes"], 192);
  EXPECT_THAT((*result)["auto"][0]["choice"].get<std::string>(), HasSubstr("-shot"));
}

// Through the host there is one algorithm, and nothing to fuse.
TEST(CudaAllReduceBench, OtherTransportsHaveTwoShotAlone) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  CudaAllReduceBenchOptions options = SmallOptions();
  options.transport = "host";
  options.codecs = {"int8", "auto"};
  const auto result = RunCudaAllReduceBench(options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  auto counts = CountRows(*result);
  EXPECT_EQ((counts[{"int8", "sum"}]), 2);
  EXPECT_EQ((counts[{"int8", "sum, norm"}]), 2);
  EXPECT_EQ((counts[{"int8", "sum+norm"}]), 0);
  EXPECT_FALSE(result->contains("auto"));
  EXPECT_THAT((*result)["left_out"]["auto"].get<std::string>(), HasSubstr("nothing is measured"));
}

TEST(CudaAllReduceBench, OneDeviceIsTooFew) {
  const auto devices = gpu::ListDevices().value();
  if (devices.empty()) GTEST_SKIP() << "no CUDA device";
  if (devices.size() > 1) GTEST_SKIP() << "there are " << devices.size() << " devices";
  CudaAllReduceBenchOptions options = SmallOptions();
  options.ranks_on_one_device = 0;
  const absl::Status status = RunCudaAllReduceBench(options, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("at least 2 are needed, this host has 1"));
}

TEST(CudaAllReduceBench, AnErrorOfOneRankEndsAll) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  std::vector<gpu::DeviceCaps> devices(2, gpu::ListDevices().value().front());
  devices[1].index = 77;
  const absl::Status status =
      RunAllReduceRanks(SmallOptions(), devices, Unavailable("none"), nullptr).status();
  EXPECT_FALSE(status.ok());
}

void Read(void* host, const void* device, size_t bytes, cudaStream_t stream) {
  EXPECT_TRUE(gpu::CopyToHost(host, device, bytes, stream).ok());
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
}
void Write(void* device, const void* host, size_t bytes, cudaStream_t stream) {
  EXPECT_TRUE(gpu::CopyToDevice(device, host, bytes, stream).ok());
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
}

TEST(CudaAllReduceBench, NcclIsBesideIt) {
  const auto devices = gpu::ListDevices().value();
  if (devices.empty()) GTEST_SKIP() << "no CUDA device";
  const std::string file = testing::BesideProgram(NIBBLE_FAKE_NCCL);
  const auto library = DynamicLibrary::Open(file.c_str());
  ASSERT_TRUE(library.ok()) << library.status();
  decltype(&::FakeNcclControl) control = nullptr;
  ASSERT_TRUE(library->Find("FakeNcclControl", &control).ok());
  control()->read = Read;
  control()->write = Write;
  const auto nccl = comm::NcclLibrary::Open(file.c_str());
  ASSERT_TRUE(nccl.ok()) << nccl.status();
  CudaAllReduceBenchOptions options = SmallOptions();
  options.codecs = {};
  gpu::DeviceCaps caps = devices.front();
  caps.num_sms = 2;
  const auto result = RunAllReduceRanks(options, {caps, caps}, &*nccl, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  auto counts = CountRows(*result);
  EXPECT_EQ((counts[{"nccl", "sum"}]), 2);
  EXPECT_EQ((counts[{"nccl", "sum, norm"}]), 2);
  for (const auto& row : (*result)["results"]) {
    EXPECT_TRUE(row.contains("times_nccl")) << row;
    if (row["codec"] == "nccl") {
      EXPECT_EQ(row["transport"], "nccl 2.28.9");
    }
  }
}

}  // namespace
}  // namespace nibble::bench
