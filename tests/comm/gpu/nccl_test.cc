// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Opening NCCL, forming and ending communicators, and what travels, with a library in its place.

#include <chrono>
#include <climits>
#include <latch>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/dynamic_library.h"
#include "comm/gpu/nccl_communicator.h"
#include "tests/comm/gpu/device_ranks.h"
#include "tests/comm/gpu/fake_nccl.h"
#include "tests/testing/beside_program.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;
using Mode = AllReduceOptions::Mode;

constexpr int64_t kRows = 3;
constexpr int64_t kRowSize = 301;
constexpr size_t kCount = kRows * kRowSize;

std::string FakeFile() { return testing::BesideProgram(NIBBLE_FAKE_NCCL); }

void Read(void* host, const void* device, size_t bytes, cudaStream_t stream) {
  EXPECT_TRUE(gpu::CopyToHost(host, device, bytes, stream).ok());
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
}
void Write(void* device, const void* host, size_t bytes, cudaStream_t stream) {
  EXPECT_TRUE(gpu::CopyToDevice(device, host, bytes, stream).ok());
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
}

// With or without a device: a pack that lacks it is found out before it is on a machine with one.
TEST(NcclStandIn, LiesBesideTheTest) {
  const auto library = DynamicLibrary::Open(FakeFile().c_str());
  EXPECT_TRUE(library.ok()) << library.status();
}

class NcclTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto devices = gpu::ListDevices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (devices->empty()) GTEST_SKIP() << "no CUDA device";
    options_.caps = devices->front();
    options_.max_values = static_cast<int64_t>(kCount);
    const auto library = DynamicLibrary::Open(FakeFile().c_str());
    ASSERT_TRUE(library.ok()) << library.status();
    decltype(&::FakeNcclControl) control = nullptr;
    ASSERT_TRUE(library->Find("FakeNcclControl", &control).ok());
    fake_ = control();
    fake_->version = 22809;
    fake_->init_result = NcclResult::kSuccess;
    fake_->polls_in_progress = 3;
    fake_->num_polls = 0;
    fake_->async = NcclResult::kSuccess;
    fake_->num_aborted = 0;
    fake_->num_destroyed = 0;
    fake_->read = Read;
    fake_->write = Write;
    const auto nccl = NcclLibrary::Open(FakeFile().c_str());
    ASSERT_TRUE(nccl.ok()) << nccl.status();
    nccl_ = *nccl;
  }

  // Until the watchdog has seen it: a minute at most.
  static absl::Status WaitForError(DeviceCommunicator* device) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (device->Check().ok() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return device->Check();
  }

  FakeNccl* fake_ = nullptr;
  NcclLibrary nccl_;
  DeviceCommunicatorOptions options_;
};

std::vector<float> Values(int rank) {
  testing::Random random(static_cast<uint64_t>(100 + rank));
  std::vector<float> values(kCount);
  for (float& x : values) x = random.Normal();
  return values;
}

TEST_F(NcclTest, WhatIsMissingOrTooOldIsNamed) {
  const absl::Status missing = NcclLibrary::Open("libnccl-of-nobody.so").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("libnccl-of-nobody.so"));
  const absl::Status other = NcclLibrary::Open("libc.so.6").status();
  EXPECT_THAT(std::string(other.message()), HasSubstr("ncclGetVersion"));
  fake_->version = 21706;
  const absl::Status old = NcclLibrary::Open(FakeFile().c_str()).status();
  EXPECT_EQ(old.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(old.message()), HasSubstr("NCCL 2.17.6, wanted is 2.18"));
}

TEST_F(NcclTest, SumsAsTheHostDoes) {
  for (const int size : {2, 3}) {
    for (const AllReduceOptions& mode :
         {AllReduceOptions{.mode = Mode::kNone},
          {.mode = Mode::kFixed, .codec = {.bits = 5, .spikes = true, .rotation = true}}}) {
      const auto group = ThreadGroup(size, mode);
      OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
        auto device = NcclCommunicator::Create(&nccl_, host, options_);
        ASSERT_TRUE(device.ok()) << device.status();
        EXPECT_EQ((*device)->name(), "nccl 2.28.9");
        EXPECT_FALSE((*device)->capturable());
        auto stream = gpu::Stream::Create();
        auto data = gpu::DeviceBuffer<float>::Create(kCount);
        auto all = gpu::DeviceBuffer<float>::Create(kCount * static_cast<size_t>(size));
        ASSERT_TRUE(stream.ok() && data.ok() && all.ok());
        std::vector<float> expected = Values(rank);
        Write(data->data(), expected.data(), data->size_bytes(), stream->get());
        ASSERT_TRUE((*device)
                        ->AllReduce({.data = data->data(),
                                     .dtype = DType::kF32,
                                     .num_rows = kRows,
                                     .row_size = kRowSize},
                                    stream->get())
                        .ok());
        std::vector<float> sums(kCount);
        Read(sums.data(), data->data(), data->size_bytes(), stream->get());
        ASSERT_TRUE(
            host->AllReduce({.data = expected.data(), .num_rows = kRows, .row_size = kRowSize},
                            pool)
                .ok());
        EXPECT_EQ(sums, expected);
        const std::vector<float> mine(kCount, static_cast<float>(rank));
        Write(data->data(), mine.data(), data->size_bytes(), stream->get());
        ASSERT_TRUE((*device)
                        ->AllGather(data->data(), static_cast<int64_t>(data->size_bytes()),
                                    all->data(), stream->get())
                        .ok());
        std::vector<float> gathered(all->size());
        Read(gathered.data(), all->data(), all->size_bytes(), stream->get());
        for (size_t i = 0; i < gathered.size(); ++i) {
          ASSERT_EQ(gathered[i], static_cast<float>(i / kCount)) << i;
        }
        EXPECT_TRUE((*device)->Check().ok());
        EXPECT_TRUE(host->Barrier().ok());
      });
      EXPECT_EQ(fake_->num_aborted, 0);
      EXPECT_EQ(fake_->num_destroyed, size);
      fake_->num_destroyed = 0;
    }
  }
}

TEST_F(NcclTest, RanksAgreeThatItCannotBeFormed) {
  fake_->init_result = NcclResult{2};
  const auto group = ThreadGroup(2, {.mode = Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool*) {
    const absl::Status status = NcclCommunicator::Create(&nccl_, host, options_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("rank 0: forming NCCL's communicator: NCCL: unhandled system error: "
                          "no route to the other host"));
    absl::StatusOr<const NcclLibrary*> nccl = &nccl_;
    if (rank == 1) nccl = Unavailable("no such file");
    EXPECT_EQ(NcclCommunicator::Create(nccl, host, options_).status(),
              absl::UnavailableError("rank 1: no such file"));
  });
  EXPECT_EQ(fake_->num_aborted, 2);
}

TEST_F(NcclTest, AnErrorInTheBackgroundAbortsIt) {
  const auto group = ThreadGroup(1, {.mode = Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool*) {
    auto device = NcclCommunicator::Create(&nccl_, host, options_);
    ASSERT_TRUE(device.ok()) << device.status();
    fake_->async = NcclResult::kRemoteError;
    const absl::Status status = WaitForError(device->get());
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("no route"));
    float value = 0.0F;
    EXPECT_EQ((*device)->AllReduce({.data = &value, .num_rows = 1, .row_size = 1}, nullptr),
              status);
  });
  EXPECT_EQ(fake_->num_aborted, 1);
  EXPECT_EQ(fake_->num_destroyed, 0);
}

TEST_F(NcclTest, AnAbortEndsIt) {
  const auto group = ThreadGroup(1, {.mode = Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool*) {
    auto device = NcclCommunicator::Create(&nccl_, host, options_);
    ASSERT_TRUE(device.ok()) << device.status();
    (*device)->Abort("formed anew");
    EXPECT_EQ((*device)->Check(), absl::AbortedError("formed anew"));
    (*device)->Abort("once more");
  });
  EXPECT_EQ(fake_->num_aborted, 1);
}

// Ranks that are gone never answer; who is told of that does not wait for them until the timeout.
TEST_F(NcclTest, FormingItEndsWhenTold) {
  fake_->polls_in_progress = INT_MAX;
  options_.timeout = std::chrono::hours(1);
  std::stop_source stop;
  options_.stop = stop.get_token();
  const auto group = ThreadGroup(1, {.mode = Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool*) {
    std::thread teller([&] {
      while (fake_->num_polls < 3) std::this_thread::yield();
      stop.request_stop();
    });
    const absl::Status status = NcclCommunicator::Create(&nccl_, host, options_).status();
    teller.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("told to end"));
  });
  EXPECT_EQ(fake_->num_aborted, 1);
}

// A stream of the emulator gets nowhere until somebody waits for it.
TEST_F(NcclTest, WhatDoesNotEndIsAborted) {
#if !defined(NIBBLE_SIMT)
  GTEST_SKIP() << "a device ends what it was given";
#endif
  options_.timeout = std::chrono::milliseconds(20);
  const auto group = ThreadGroup(1, {.mode = Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool*) {
    auto device = NcclCommunicator::Create(&nccl_, host, options_);
    ASSERT_TRUE(device.ok()) << device.status();
    auto stream = gpu::Stream::Create();
    auto data = gpu::DeviceBuffer<float>::Create(kCount);
    ASSERT_TRUE(stream.ok() && data.ok());
    const DeviceAllReduceArgs args = {
        .data = data->data(), .dtype = DType::kF32, .num_rows = kRows, .row_size = kRowSize};
    ASSERT_TRUE((*device)->AllReduce(args, stream->get()).ok());
    const absl::Status status = WaitForError(device->get());
    EXPECT_THAT(std::string(status.message()), HasSubstr("did not end within 0.0 s"));
  });
  EXPECT_EQ(fake_->num_aborted, 1);
}

}  // namespace
}  // namespace nibble::comm
