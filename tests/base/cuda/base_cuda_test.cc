// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The device layer, with whatever device there is.
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/error.h"
#include "base/cuda/stream.h"
#include "base/cuda/tensor_map.h"
#include "tests/base/cuda/device_test.h"

namespace nibble::gpu {
namespace {

using ::testing::HasSubstr;
using BaseCuda = nibble::testing::DeviceTest;

TEST(CudaError, BecomesAStatus) {
  EXPECT_TRUE(ToStatus(cudaSuccess, "x").ok());
  EXPECT_EQ(ToStatus(cudaErrorNoDevice, "x").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ToStatus(cudaErrorInsufficientDriver, "x").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ToStatus(cudaErrorMemoryAllocation, "x").code(), absl::StatusCode::kResourceExhausted);
  const absl::Status status = ToStatus(cudaErrorInvalidValue, "cudaSomething");
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cudaSomething"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("cudaErrorInvalidValue"));
}

TEST(CudaError, StickyIsWhatLosesTheContext) {
  for (const cudaError_t error :
       {cudaErrorECCUncorrectable, cudaErrorNvlinkUncorrectable, cudaErrorContained,
        cudaErrorIllegalAddress, cudaErrorLaunchTimeout, cudaErrorContextIsDestroyed,
        cudaErrorAssert, cudaErrorHardwareStackError, cudaErrorIllegalInstruction,
        cudaErrorMisalignedAddress, cudaErrorInvalidAddressSpace, cudaErrorInvalidPc,
        cudaErrorLaunchFailure, cudaErrorTensorMemoryLeak, cudaErrorMpsClientTerminated,
        cudaErrorExternalDevice, cudaErrorUnknown}) {
    EXPECT_TRUE(IsSticky(error)) << static_cast<int>(error);
    EXPECT_THAT(std::string(ToStatus(error, "x").message()), HasSubstr("can no longer use"))
        << static_cast<int>(error);
  }
  for (const cudaError_t error :
       {cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorNoDevice,
        cudaErrorNoKernelImageForDevice, cudaErrorNotReady, cudaErrorPeerAccessAlreadyEnabled,
        cudaErrorCooperativeLaunchTooLarge, cudaErrorStreamCaptureInvalidated}) {
    EXPECT_FALSE(IsSticky(error)) << static_cast<int>(error);
  }
}

// Also on hosts without a driver.
TEST(CudaDevices, AreListed) {
  const auto devices = ListDevices();
  ASSERT_TRUE(devices.ok()) << devices.status();
  for (const DeviceCaps& caps : *devices) {
    EXPECT_GE(caps.sm, 50) << caps.name;
    EXPECT_GT(caps.num_sms, 0) << caps.name;
    EXPECT_GT(caps.memory_bytes, 0) << caps.name;
    EXPECT_GE(caps.max_shared_bytes, 48 * 1024) << caps.name;
  }
  EXPECT_FALSE(GetDeviceCaps(static_cast<int>(devices->size())).ok());
  EXPECT_FALSE(GetDeviceCaps(-1).ok());
}

TEST_F(BaseCuda, DeviceGuardsNest) {
  auto outer = DeviceGuard::Create(caps_.index);
  ASSERT_TRUE(outer.ok()) << outer.status();
  EXPECT_FALSE(DeviceGuard::Create(10'000).ok());
  const DeviceGuard moved = *std::move(outer);
  const auto memory = GetDeviceMemory();
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_LE(memory->free_bytes, memory->total_bytes);
}

#ifdef NIBBLE_SIMT
// What the thread does with devices, of three that there are.
void OnThreeDevices(const std::function<void()>& body) {
  simt::SetDevice({.count = 3});
  std::thread(body).join();
  simt::SetDevice({});
}

TEST(DeviceGuardTest, AFreshThreadMakesNoContextButTheOneItWants) {
  OnThreeDevices([] {
    ASSERT_TRUE(ListDevices().ok());
    EXPECT_FALSE(simt::HasContext(0)) << "by listing";
    {
      const auto guard = DeviceGuard::Create(1);
      ASSERT_TRUE(guard.ok()) << guard.status();
      EXPECT_TRUE(DeviceBuffer<int>::Create(1).ok());
    }
    EXPECT_TRUE(simt::HasContext(1));
    EXPECT_FALSE(simt::HasContext(0));
    // Whatever the thread does next is not device 0's either.
    EXPECT_TRUE(DeviceBuffer<int>::Create(1).ok());
    EXPECT_FALSE(simt::HasContext(0));
  });
}

TEST(DeviceGuardTest, WhatTheThreadHadChosenIsCurrentAgain) {
  OnThreeDevices([] {
    const auto current = [] {
      int device = -1;
      EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
      return device;
    };
    {
      const auto outer = DeviceGuard::Create(2);
      ASSERT_TRUE(outer.ok()) << outer.status();
      {
        const auto same = DeviceGuard::Create(2);
        const auto inner = DeviceGuard::Create(1);
        ASSERT_TRUE(same.ok() && inner.ok());
        EXPECT_EQ(current(), 1);
        EXPECT_FALSE(DeviceGuard::Create(3).ok());
        EXPECT_EQ(current(), 1);
      }
      EXPECT_EQ(current(), 2);
    }
    EXPECT_EQ(current(), 2);
    { const auto later = DeviceGuard::Create(0); }
    EXPECT_EQ(current(), 2);
  });
}

TEST(CudaDevices, TheReasonForNoneIsSaid) {
  simt::SetDevice({.count = 0, .driver_version = 0});
  EXPECT_EQ(WhyNoDevice(), "no CUDA driver");
  simt::SetDevice({.driver_version = 12040});
  ASSERT_TRUE(ListDevices().ok());
  EXPECT_TRUE(ListDevices()->empty());
  EXPECT_EQ(WhyNoDevice(),
            "the driver is for CUDA 12.4, this program needs 13.0 (driver 580 or later)");
  simt::SetDevice({.count = 0, .driver_version = 13010});
  EXPECT_EQ(WhyNoDevice(), "the driver (for CUDA 13.1) shows no device");
  simt::SetDevice({});
}
#endif

TEST_F(BaseCuda, BuffersAreMovedAndNotCopied) {
  auto a = Upload(std::vector<int>{1, 2, 3});
  int* const data = a.data();
  DeviceBuffer<int> b = std::move(a);
  EXPECT_EQ(a.data(), nullptr);  // NOLINT: what it is after the move is said
  EXPECT_EQ(a.size(), 0U);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.size_bytes(), 12U);
  DeviceBuffer<int> c;
  c = std::move(b);
  EXPECT_EQ(Download(c), (std::vector<int>{1, 2, 3}));
}

TEST_F(BaseCuda, EmptyBuffersAreNone) {
  const auto buffer = DeviceBuffer<int>::Create(0);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(buffer->data(), nullptr);
  EXPECT_TRUE(CopyToDevice(nullptr, nullptr, 0, stream_.get()).ok());
  EXPECT_TRUE(CopyToHost(nullptr, nullptr, 0, stream_.get()).ok());
  EXPECT_TRUE(CopyOnDevice(nullptr, nullptr, 0, stream_.get()).ok());
  EXPECT_TRUE(ZeroDevice(nullptr, 0, stream_.get()).ok());
}

TEST_F(BaseCuda, BuffersTooLargeAreErrors) {
  const auto buffer = DeviceBuffer<uint64_t>::Create(size_t{1} << 50);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  // The bytes do not fit size_t.
  const auto overflows = DeviceBuffer<uint64_t>::Create((size_t{1} << 61) + 1);
  EXPECT_EQ(overflows.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Allocate<int>(4).data() != nullptr);  // the error did not stay
}

TEST_F(BaseCuda, CopiesGoAround) {
  auto pinned = PinnedBuffer<int>::Create(3);
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  for (int i = 0; i < 3; ++i) pinned->data()[i] = i + 5;
  const auto a = Allocate<int>(3);
  const auto b = Allocate<int>(4);
  ASSERT_TRUE(ZeroDevice(b.data(), b.size_bytes(), stream_.get()).ok());
  ASSERT_TRUE(CopyToDevice(a.data(), pinned->data(), 12, stream_.get()).ok());
  ASSERT_TRUE(CopyOnDevice(b.data() + 1, a.data(), 12, stream_.get()).ok());
  EXPECT_EQ(Download(b), (std::vector<int>{0, 5, 6, 7}));
}

TEST_F(BaseCuda, EventsAreDoneAfterTheirStream) {
  auto event = Event::Create();
  ASSERT_TRUE(event.ok()) << event.status();
  const auto data = Allocate<int>(1000);
  ASSERT_TRUE(ZeroDevice(data.data(), data.size_bytes(), stream_.get()).ok());
  ASSERT_TRUE(event->Record(stream_.get()).ok());
  ASSERT_TRUE(event->Synchronize().ok());
  const auto done = event->IsDone();
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(*done);
}

TEST_F(BaseCuda, OnlyTimedEventsHaveTimes) {
  const Event begin = *Event::Create(/*timing=*/true);
  const Event end = *Event::Create(/*timing=*/true);
  ASSERT_TRUE(begin.Record(stream_.get()).ok());
  ASSERT_TRUE(end.Record(stream_.get()).ok());
  ASSERT_TRUE(end.Synchronize().ok());
  const auto ms = ElapsedMs(begin, end);
  ASSERT_TRUE(ms.ok()) << ms.status();
  EXPECT_GE(*ms, 0.0F);
  const Event untimed = *Event::Create();
  ASSERT_TRUE(untimed.Record(stream_.get()).ok());
  ASSERT_TRUE(untimed.Synchronize().ok());
  EXPECT_FALSE(ElapsedMs(begin, untimed).ok());
}

TEST_F(BaseCuda, GraphsReplay) {
  auto pinned = PinnedBuffer<int>::Create(2);
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  const auto data = Upload(std::vector<int>{0, 0, 9});
  ASSERT_TRUE(GraphExec::BeginCapture(stream_.get()).ok());
  EXPECT_TRUE(CopyToDevice(data.data(), pinned->data(), 8, stream_.get()).ok());
  EXPECT_TRUE(CopyOnDevice(data.data() + 2, data.data(), 4, stream_.get()).ok());
  auto graph = GraphExec::EndCapture(stream_.get());
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(Download(data), (std::vector<int>{0, 0, 9}));
  const GraphExec moved = *std::move(graph);
  EXPECT_TRUE(static_cast<bool>(moved));
  for (int i = 1; i < 3; ++i) {
    pinned->data()[0] = i;
    pinned->data()[1] = i * 10;
    ASSERT_TRUE(moved.Launch(stream_.get()).ok());
    EXPECT_EQ(Download(data), (std::vector<int>{i, i * 10, i}));
  }
}

TEST_F(BaseCuda, ACaptureThatCannotBeEndsWithAnError) {
  ASSERT_TRUE(GraphExec::BeginCapture(stream_.get()).ok());
  EXPECT_FALSE(stream_.Synchronize().ok());
  EXPECT_FALSE(GraphExec::EndCapture(stream_.get()).ok());
  EXPECT_TRUE(stream_.Synchronize().ok());
}

TEST(TensorMapTest, ChecksItsNumbers) {
  alignas(16) static const uint8_t matrix[4096] = {};
  const Tensor2d good{.global = matrix,
                      .element_bytes = 1,
                      .inner = 128,
                      .outer = 32,
                      .row_stride_bytes = 128,
                      .box_inner = 128,
                      .box_outer = 8};
  const auto wrong = [&](auto change, const char* message) {
    Tensor2d tensor = good;
    change(&tensor);
    const auto map = MakeTensorMap2d(tensor);
    EXPECT_EQ(map.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(map.status().message()), HasSubstr(message));
  };
  wrong([](Tensor2d* t) { t->global = nullptr; }, "multiple of 16");
  wrong([](Tensor2d* t) { t->global = matrix + 8; }, "multiple of 16");
  wrong([](Tensor2d* t) { t->element_bytes = 3; }, "1, 2 or 4");
  wrong([](Tensor2d* t) { t->inner = 0; }, "limits are 1 and");
  wrong([](Tensor2d* t) { t->outer = (int64_t{1} << 32) + 1; }, "limits are 1 and");
  wrong([](Tensor2d* t) { t->row_stride_bytes = 136; }, "multiple of 16");
  wrong([](Tensor2d* t) { t->row_stride_bytes = 112; }, "128 long");
  wrong([](Tensor2d* t) { t->row_stride_bytes = int64_t{1} << 40; }, "below");
  wrong([](Tensor2d* t) { t->box_outer = 257; }, "limits are 1 and 256");
  wrong([](Tensor2d* t) { t->box_inner = 0; }, "limits are 1 and 256");
  wrong([](Tensor2d* t) { t->box_inner = 120; }, "multiples of 16");
  wrong([](Tensor2d* t) { t->box_inner = 64; }, "rows of 64 bytes");
}

}  // namespace
}  // namespace nibble::gpu
