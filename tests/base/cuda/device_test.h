// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tests that need a device, real or emulated.
#pragma once

#include <vector>

#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"

namespace nibble::testing {

// Skips where there is none.
class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto devices = gpu::ListDevices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (devices->empty()) GTEST_SKIP() << "no CUDA device";
    caps_ = devices->front();
    auto stream = gpu::Stream::Create();
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *std::move(stream);
  }

  template <typename T>
  gpu::DeviceBuffer<T> Allocate(size_t count) {
    auto buffer = gpu::DeviceBuffer<T>::Create(count);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
  template <typename T>
  gpu::DeviceBuffer<T> Upload(const std::vector<T>& values) {
    gpu::DeviceBuffer<T> buffer = Allocate<T>(values.size());
    EXPECT_TRUE(
        gpu::CopyToDevice(buffer.data(), values.data(), buffer.size_bytes(), stream_.get()).ok());
    EXPECT_TRUE(stream_.Synchronize().ok());
    return buffer;
  }
  template <typename T>
  std::vector<T> Download(const gpu::DeviceBuffer<T>& buffer) {
    std::vector<T> values(buffer.size());
    EXPECT_TRUE(
        gpu::CopyToHost(values.data(), buffer.data(), buffer.size_bytes(), stream_.get()).ok());
    const absl::Status status = stream_.Synchronize();
    EXPECT_TRUE(status.ok()) << status;
    return values;
  }

  gpu::DeviceCaps caps_;
  gpu::Stream stream_;
};

}  // namespace nibble::testing
