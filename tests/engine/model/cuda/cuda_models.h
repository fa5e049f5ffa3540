// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Models on a device beside the same ones on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/thread_pool.h"
#include "engine/model/cuda/cuda_device.h"
#include "engine/model/model.h"
#include "tests/engine/model/model_runner.h"

namespace nibble::testing {

// Skips where there is no device.
class CudaModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const engine::CudaDevices devices = engine::ListCudaDevices();
    if (devices.usable.empty()) GTEST_SKIP() << "no CUDA device: " << devices.why_none;
  }

  // `load` with a device (and a failed test when it cannot be had). Rows have the same bits in
  // every batch by our own kernels alone.
  static engine::LoadOptions OnDevice(engine::LoadOptions load,
                                      const engine::CudaOptions& options = {
                                          .use_cublaslt = false}) {
    auto device = engine::OpenCudaDevice(options);
    EXPECT_TRUE(device.ok()) << device.status();
    if (device.ok()) load.device = *std::move(device);
    return load;
  }
  std::unique_ptr<engine::Model> LoadOnDevice(const std::string& dir,
                                              const engine::LoadOptions& load,
                                              const engine::CudaOptions& options = {
                                                  .use_cublaslt = false}) {
    return LoadOrFail(dir, OnDevice(load, options), &pool_);
  }
  std::unique_ptr<engine::Model> LoadOnCpu(const std::string& dir, engine::LoadOptions load) {
    load.isa = HostCpuFeatures().Best();
    return LoadOrFail(dir, load, &pool_);
  }

  ThreadPool pool_{2};
};

// Of the source tree, or where NIBBLE_TEST_DATA says that its models and fixtures are: this program
// also runs on machines with a GPU and no sources.
inline std::string DataPath(const std::string& path) {
  const char* const root = std::getenv("NIBBLE_TEST_DATA");
  return (root == nullptr ? std::string(NIBBLE_SOURCE_DIR) : root) + "/" + path;
}
inline std::string FixtureModel(const std::string& name) {
  return DataPath("tests/fixtures/models/" + name);
}

// Ids below `vocab_size`, always the same ones.
inline std::vector<int32_t> SomeIds(int64_t count, int64_t vocab_size, uint64_t seed = 5) {
  Random random(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(random.Int(0, vocab_size - 1)));
  }
  return ids;
}

// Of the largest difference to the largest value.
inline double RelativeDifference(const std::vector<float>& found,
                                 const std::vector<float>& wanted) {
  EXPECT_EQ(found.size(), wanted.size());
  if (found.size() != wanted.size() || wanted.empty()) return HUGE_VAL;
  double largest = 0.0;
  double difference = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(wanted[i])));
    const double d = std::abs(static_cast<double>(found[i]) - static_cast<double>(wanted[i]));
    difference = std::isnan(d) ? HUGE_VAL : std::max(difference, d);
  }
  return difference / largest;
}

}  // namespace nibble::testing
