// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda/device_meter.h"

#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::bench {
namespace {

// A call that loads something when it runs first must not do so while a graph is captured.
TEST(DeviceMeter, EveryCallRunsBeforeTheGraphIsCaptured) {
  if (gpu::ListDevices().value().empty()) GTEST_SKIP() << "no CUDA device";
  const auto meter = DeviceMeter::Create(0, {.seconds = 0.0, .min_runs = 1});
  ASSERT_TRUE(meter.ok()) << meter.status();
  const auto byte = gpu::DeviceBuffer<uint8_t>::Create(1);
  ASSERT_TRUE(byte.ok()) << byte.status();
  std::vector<int> calls;
  const auto timing = meter->Measure(3, [&](int call) {
    calls.push_back(call);
    return gpu::ZeroDevice(byte->data(), 1, meter->stream());
  });
  ASSERT_TRUE(timing.ok()) << timing.status();
  EXPECT_EQ(calls, (std::vector<int>{0, 1, 2, 0, 1, 2}));
}

TEST(DeviceMeter, SaysWhichDeviceAndHowManyThereAre) {
  const auto devices = gpu::ListDevices().value();
  if (devices.empty()) GTEST_SKIP() << "no CUDA device";
  const auto meter = DeviceMeter::Create(0, {});
  ASSERT_TRUE(meter.ok()) << meter.status();
  const auto described = meter->Describe();
  EXPECT_EQ(described["name"], devices[0].name);
  EXPECT_EQ(described["sm"], devices[0].sm);
  EXPECT_EQ(described["num_devices"], devices.size());
}

}  // namespace
}  // namespace nibble::bench
