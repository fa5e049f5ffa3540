// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulated runtime: work that is done later than the careless expect, and errors.
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/launch.h"
#include "base/cuda/stream.h"
#include "tests/simt/launch.h"

namespace simt {
namespace {

using ::testing::HasSubstr;
namespace gpu = nibble::gpu;

class RuntimeTest : public ::testing::Test {
 protected:
  RuntimeTest()
      : stream_(*gpu::Stream::Create()),
        other_(*gpu::Stream::Create()),
        event_(*gpu::Event::Create()),
        data_(*gpu::DeviceBuffer<int>::Create(4)),
        pinned_(*gpu::PinnedBuffer<int>::Create(4)) {}
  ~RuntimeTest() override { ClearError(); }

  // On the device, after all that was given to `stream` before.
  int Value(const gpu::Stream& stream) {
    EXPECT_TRUE(gpu::CopyToHost(pinned_.data(), data_.data(), 4, stream.get()).ok());
    EXPECT_TRUE(stream.Synchronize().ok());
    return *pinned_.data();
  }

  gpu::Stream stream_;
  gpu::Stream other_;
  gpu::Event event_;
  gpu::DeviceBuffer<int> data_;
  gpu::PinnedBuffer<int> pinned_;
};

__global__ void Put(int* data, int value) { *data = value; }
__global__ void Add(int* data, int value) { *data += value; }

absl::Status LaunchPut(const gpu::Stream& stream, int* data, int value) {
  return gpu::Launch(Put, {.stream = stream.get()}, data, value);
}
absl::Status LaunchAdd(const gpu::Stream& stream, int* data, int value) {
  return gpu::Launch(Add, {.stream = stream.get()}, data, value);
}

TEST_F(RuntimeTest, StreamsRunWhenSomebodyWaits) {
  *pinned_.data() = 7;
  ASSERT_TRUE(LaunchPut(stream_, data_.data(), 3).ok());
  ASSERT_TRUE(gpu::CopyToHost(pinned_.data(), data_.data(), 4, stream_.get()).ok());
  EXPECT_EQ(*pinned_.data(), 7);
  ASSERT_TRUE(stream_.Synchronize().ok());
  EXPECT_EQ(*pinned_.data(), 3);
}

TEST_F(RuntimeTest, PinnedMemoryIsReadWhenTheCopyIsDone) {
  *pinned_.data() = 7;
  ASSERT_TRUE(gpu::CopyToDevice(data_.data(), pinned_.data(), 4, stream_.get()).ok());
  *pinned_.data() = 8;
  EXPECT_EQ(Value(stream_), 8);
}

TEST_F(RuntimeTest, PageableMemoryIsReadAtOnce) {
  int value = 7;
  ASSERT_TRUE(gpu::CopyToDevice(data_.data(), &value, 4, stream_.get()).ok());
  value = 8;
  EXPECT_EQ(Value(stream_), 7);
  ASSERT_TRUE(gpu::CopyToHost(&value, data_.data(), 4, stream_.get()).ok());
  EXPECT_EQ(value, 7);
}

TEST_F(RuntimeTest, FreshMemoryIsNotZero) { EXPECT_EQ(Value(stream_), -1); }

TEST_F(RuntimeTest, StreamsDoNotWaitForEachOtherByThemselves) {
  ASSERT_TRUE(LaunchPut(other_, data_.data(), 3).ok());
  EXPECT_EQ(Value(stream_), -1);
}

TEST_F(RuntimeTest, AnEventIsWaitedForAndNothingAfterIt) {
  ASSERT_TRUE(LaunchPut(other_, data_.data(), 3).ok());
  ASSERT_TRUE(event_.Record(other_.get()).ok());
  ASSERT_TRUE(LaunchPut(other_, data_.data(), 4).ok());
  ASSERT_EQ(cudaStreamWaitEvent(stream_.get(), event_.get()), cudaSuccess);
  EXPECT_EQ(Value(stream_), 3);
  ASSERT_TRUE(event_.Synchronize().ok());
  EXPECT_EQ(Value(stream_), 3);
  EXPECT_EQ(Value(other_), 4);
}

TEST_F(RuntimeTest, AnEventThatIsAskedForIsDoneSometime) {
  ASSERT_TRUE(LaunchPut(stream_, data_.data(), 3).ok());
  ASSERT_TRUE(LaunchAdd(stream_, data_.data(), 1).ok());
  ASSERT_TRUE(event_.Record(stream_.get()).ok());
  EXPECT_FALSE(*event_.IsDone());
  int num_asked = 1;
  while (!*event_.IsDone()) ++num_asked;
  EXPECT_EQ(num_asked, 2);
  EXPECT_EQ(*data_.data(), 4);
}

TEST_F(RuntimeTest, AGraphReplaysWhatWasCaptured) {
  ASSERT_TRUE(gpu::GraphExec::BeginCapture(stream_.get()).ok());
  ASSERT_TRUE(gpu::CopyToDevice(data_.data(), pinned_.data(), 4, stream_.get()).ok());
  ASSERT_TRUE(LaunchAdd(stream_, data_.data(), 10).ok());
  auto graph = gpu::GraphExec::EndCapture(stream_.get());
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(Value(stream_), -1);  // nothing ran
  for (const int value : {1, 2}) {
    *pinned_.data() = value;
    ASSERT_TRUE(graph->Launch(stream_.get()).ok());
    EXPECT_EQ(Value(stream_), value + 10);
  }
}

TEST_F(RuntimeTest, ACaptureForksAndJoins) {
  const gpu::Event joined = *gpu::Event::Create();
  for (const bool joins : {true, false}) {
    ASSERT_TRUE(gpu::GraphExec::BeginCapture(stream_.get()).ok());
    ASSERT_TRUE(LaunchPut(stream_, data_.data(), 1).ok());
    ASSERT_TRUE(event_.Record(stream_.get()).ok());
    ASSERT_EQ(cudaStreamWaitEvent(other_.get(), event_.get()), cudaSuccess);
    ASSERT_TRUE(LaunchAdd(other_, data_.data(), 1).ok());
    ASSERT_TRUE(joined.Record(other_.get()).ok());
    if (joins) {
      ASSERT_EQ(cudaStreamWaitEvent(stream_.get(), joined.get()), cudaSuccess);
    }
    const auto graph = gpu::GraphExec::EndCapture(stream_.get());
    ASSERT_EQ(graph.ok(), joins);
    if (!joins) continue;
    ASSERT_TRUE(graph->Launch(stream_.get()).ok());
    EXPECT_EQ(Value(stream_), 2);
  }
}

TEST_F(RuntimeTest, WhatACaptureCannotHoldSpoilsIt) {
  int pageable = 0;
  ASSERT_TRUE(event_.Record(other_.get()).ok());
  const std::function<bool()> refused[] = {
      [&] { return !gpu::DeviceBuffer<int>::Create(1).ok(); },
      [&] { return !gpu::PinnedBuffer<int>::Create(1).ok(); },
      [&] { return !stream_.Synchronize().ok(); },
      [&] { return !gpu::CopyToDevice(data_.data(), &pageable, 4, stream_.get()).ok(); },
      [&] { return cudaStreamWaitEvent(stream_.get(), event_.get()) != cudaSuccess; },
      [&] {
        const gpu::Event captured = *gpu::Event::Create();
        return captured.Record(stream_.get()).ok() && !captured.Synchronize().ok();
      },
  };
  for (const auto& call : refused) {
    ASSERT_TRUE(gpu::GraphExec::BeginCapture(stream_.get()).ok());
    EXPECT_TRUE(call());
    EXPECT_FALSE(gpu::GraphExec::EndCapture(stream_.get()).ok());
    EXPECT_TRUE(stream_.Synchronize().ok());
  }
}

TEST_F(RuntimeTest, AStickyErrorIsEveryCallsError) {
  ASSERT_TRUE(LaunchPut(stream_, data_.data(), 3).ok());
  FailNext(cudaErrorIllegalAddress);
  const absl::Status status = stream_.Synchronize();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("can no longer use the device"));
  EXPECT_FALSE(LaunchPut(stream_, data_.data(), 3).ok());
  EXPECT_FALSE(gpu::CopyToHost(pinned_.data(), data_.data(), 4, stream_.get()).ok());
  EXPECT_FALSE(gpu::DeviceBuffer<int>::Create(1).ok());
  EXPECT_FALSE(gpu::Stream::Create().ok());
  EXPECT_FALSE(event_.Record(stream_.get()).ok());
  EXPECT_FALSE(event_.IsDone().ok());
}

TEST_F(RuntimeTest, OtherErrorsPass) {
  FailNext(cudaErrorLaunchFailure);
  EXPECT_TRUE(gpu::IsSticky(cudaErrorLaunchFailure));
  ClearError();
  FailNext(cudaErrorInvalidValue);
  EXPECT_FALSE(LaunchPut(stream_, data_.data(), 3).ok());
  EXPECT_TRUE(LaunchPut(stream_, data_.data(), 3).ok());
  EXPECT_EQ(Value(stream_), 3);
}

TEST_F(RuntimeTest, CopiesAreOfTheMemoryTheyName) {
  int host[4] = {};
  EXPECT_FALSE(gpu::CopyToDevice(host, pinned_.data(), 4, stream_.get()).ok());
  EXPECT_FALSE(gpu::CopyToHost(pinned_.data(), host, 4, stream_.get()).ok());
  EXPECT_FALSE(gpu::CopyOnDevice(data_.data(), pinned_.data(), 4, stream_.get()).ok());
  EXPECT_FALSE(gpu::CopyToHost(host, data_.data() + 1, 16, stream_.get()).ok());  // beyond its end
  EXPECT_FALSE(gpu::ZeroDevice(data_.data(), 17, stream_.get()).ok());
}

TEST_F(RuntimeTest, LaunchesBeyondTheDeviceAreRefused) {
  EXPECT_FALSE(gpu::Launch(Put, {.block = {1025}, .stream = stream_.get()}, data_.data(), 1).ok());
  EXPECT_FALSE(
      gpu::Launch(Put, {.shared_bytes = 228 * 1024, .stream = stream_.get()}, data_.data(), 1)
          .ok());
  const gpu::LaunchConfig together{.grid = {5 * 4}, .block = {512}, .cooperative = true};
  EXPECT_FALSE(gpu::Launch(Put, together, data_.data(), 1).ok());
  EXPECT_TRUE(
      gpu::Launch(Put, {.grid = {4 * 4}, .block = {512}, .cooperative = true}, data_.data(), 1)
          .ok());
}

TEST_F(RuntimeTest, MemoryRunsOut) {
  SetDevice({.memory_bytes = DeviceBytesInUse() + 1000});
  const auto buffer = gpu::DeviceBuffer<uint8_t>::Create(1001);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(buffer.status().message()), HasSubstr("1001 bytes"));
  EXPECT_THAT(std::string(buffer.status().message()), HasSubstr("1000 are free"));
  EXPECT_TRUE(gpu::DeviceBuffer<uint8_t>::Create(1000).ok());
  SetDevice({});
}

TEST(RuntimeWithoutDeviceTest, SaysSoAndNothingCrashes) {
  SetDevice({.count = 0});
  const auto devices = gpu::ListDevices();
  ASSERT_TRUE(devices.ok());
  EXPECT_TRUE(devices->empty());
  EXPECT_EQ(gpu::Stream::Create().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(gpu::Event::Create().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(gpu::DeviceBuffer<int>::Create(1).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(gpu::DeviceGuard::Create(0).ok());
  int data = 0;
  EXPECT_EQ(gpu::Launch(Put, {}, &data, 1).code(), absl::StatusCode::kUnavailable);
  SetDevice({});
}

}  // namespace
}  // namespace simt
