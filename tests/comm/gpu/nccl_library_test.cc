// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// NCCL itself, where it is found and memory is a device's: one rank, and two where there are two
// devices. nccl_test.cc has what only a stand-in does when told.

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/float16.h"
#include "comm/gpu/nccl_communicator.h"
#include "comm/gpu/nccl_session.h"
#include "tests/comm/gpu/device_ranks.h"

namespace nibble::comm {
namespace {

using ::testing::StartsWith;
using Mode = AllReduceOptions::Mode;

constexpr int64_t kRows = 3;
constexpr int64_t kRowSize = 301;
constexpr size_t kCount = kRows * kRowSize;

// Of 2.18's nccl.h, with its alignment.
static_assert(sizeof(NcclUniqueId) == 128);
static_assert(sizeof(NcclConfig) == 48 && alignof(NcclConfig) == 8);
static_assert(offsetof(NcclConfig, blocking) == 16 && offsetof(NcclConfig, net_name) == 32 &&
              offsetof(NcclConfig, split_share) == 40);

class NcclLibraryTest : public ::testing::Test {
 protected:
  void SetUp() override {
#if defined(NIBBLE_SIMT)
    GTEST_SKIP() << "NCCL reaches devices, and the emulator's memory is the host's";
#endif
    const auto devices = gpu::ListDevices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (devices->empty()) GTEST_SKIP() << "no CUDA device";
    devices_ = *devices;
    const auto nccl = NcclLibrary::Get();
    if (absl::IsUnavailable(nccl.status())) GTEST_SKIP() << std::string(nccl.status().message());
    ASSERT_TRUE(nccl.ok()) << nccl.status();
    nccl_ = *nccl;
  }

  DeviceCommunicatorOptions Options(int rank) const {
    return {.caps = devices_[static_cast<size_t>(rank)],
            .max_values = static_cast<int64_t>(kCount),
            .timeout = std::chrono::minutes(1)};
  }

  // Sums and gathers of a rank, compared with the host's.
  void SumAndGather(int rank, Communicator* host, ThreadPool* pool) const;

  std::vector<gpu::DeviceCaps> devices_;
  const NcclLibrary* nccl_ = nullptr;
};

void NcclLibraryTest::SumAndGather(int rank, Communicator* host, ThreadPool* pool) const {
  const auto guard = gpu::DeviceGuard::Create(devices_[static_cast<size_t>(rank)].index);
  ASSERT_TRUE(guard.ok()) << guard.status();
  auto device = NcclCommunicator::Create(nccl_, host, Options(rank));
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_THAT((*device)->name(), StartsWith("nccl 2."));
  auto stream = gpu::Stream::Create();
  auto data = gpu::DeviceBuffer<float>::Create(kCount);
  auto all = gpu::DeviceBuffer<float>::Create(kCount * static_cast<size_t>(host->size()));
  ASSERT_TRUE(stream.ok() && data.ok() && all.ok());
  ASSERT_TRUE(host->Barrier().ok());
  std::vector<float> expected(kCount);
  for (size_t i = 0; i < kCount; ++i) expected[i] = static_cast<float>(i % 7) - 0.25F;
  ASSERT_TRUE(
      gpu::CopyToDevice(data->data(), expected.data(), data->size_bytes(), stream->get()).ok());
  ASSERT_TRUE(
      (*device)
          ->AllReduce(
              {.data = data->data(), .dtype = DType::kF32, .num_rows = kRows, .row_size = kRowSize},
              stream->get())
          .ok());
  std::vector<float> sums(kCount);
  ASSERT_TRUE(gpu::CopyToHost(sums.data(), data->data(), data->size_bytes(), stream->get()).ok());
  ASSERT_TRUE(stream->Synchronize().ok());
  ASSERT_TRUE(
      host->AllReduce({.data = expected.data(), .num_rows = kRows, .row_size = kRowSize}, pool)
          .ok());
  EXPECT_EQ(sums, expected);
  const std::vector<float> mine(kCount, static_cast<float>(rank + 1));
  ASSERT_TRUE(gpu::CopyToDevice(data->data(), mine.data(), data->size_bytes(), stream->get()).ok());
  ASSERT_TRUE((*device)
                  ->AllGather(data->data(), static_cast<int64_t>(data->size_bytes()), all->data(),
                              stream->get())
                  .ok());
  std::vector<float> gathered(all->size());
  ASSERT_TRUE(gpu::CopyToHost(gathered.data(), all->data(), all->size_bytes(), stream->get()).ok());
  ASSERT_TRUE(stream->Synchronize().ok());
  for (size_t i = 0; i < gathered.size(); ++i) {
    ASSERT_EQ(gathered[i], static_cast<float>(i / kCount + 1)) << i;
  }
  EXPECT_TRUE((*device)->Check().ok()) << (*device)->Check();
  EXPECT_TRUE(host->Barrier().ok());
}

TEST_F(NcclLibraryTest, OneRankSumsAndGathers) {
  const auto group = ThreadGroup(1, {.mode = Mode::kNone});
  OnRanks(group,
          [&](int rank, Communicator* host, ThreadPool* pool) { SumAndGather(rank, host, pool); });
}

TEST_F(NcclLibraryTest, ItsOwnSumIsCalledAsBenchmarksDo) {
  const auto group = ThreadGroup(1, {.mode = Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool*) {
    auto session = NcclSession::Create(nccl_, host, Options(0));
    ASSERT_TRUE(session.ok()) << session.status();
    auto stream = gpu::Stream::Create();
    auto data = gpu::DeviceBuffer<uint16_t>::Create(kCount);
    ASSERT_TRUE(stream.ok() && data.ok());
    const std::vector<uint16_t> values(kCount, ToBFloat16(1.5F).bits);
    ASSERT_TRUE(
        gpu::CopyToDevice(data->data(), values.data(), data->size_bytes(), stream->get()).ok());
    ASSERT_TRUE((*session)
                    ->Run([&](NcclComm* communicator) {
                      return nccl_->all_reduce(data->data(), data->data(), kCount, NcclType::kBf16,
                                               NcclOp::kSum, communicator, stream->get());
                    })
                    .ok());
    ASSERT_TRUE((*session)->Watch(stream->get()).ok());
    std::vector<uint16_t> sums(kCount);
    ASSERT_TRUE(gpu::CopyToHost(sums.data(), data->data(), data->size_bytes(), stream->get()).ok());
    ASSERT_TRUE(stream->Synchronize().ok());
    EXPECT_EQ(sums, values);
    EXPECT_TRUE((*session)->Check().ok());
  });
}

TEST_F(NcclLibraryTest, AnAbortEndsIt) {
  const auto group = ThreadGroup(1, {.mode = Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool*) {
    auto device = NcclCommunicator::Create(nccl_, host, Options(0));
    ASSERT_TRUE(device.ok()) << device.status();
    (*device)->Abort("formed anew");
    EXPECT_EQ((*device)->Check(), absl::AbortedError("formed anew"));
  });
  // And another one is formed after it.
  OnRanks(group,
          [&](int rank, Communicator* host, ThreadPool* pool) { SumAndGather(rank, host, pool); });
}

TEST_F(NcclLibraryTest, TwoRanksSumAsTheHostDoes) {
  if (devices_.size() < 2) GTEST_SKIP() << "two ranks want two devices, there is one";
  for (const AllReduceOptions& mode :
       {AllReduceOptions{.mode = Mode::kNone},
        {.mode = Mode::kFixed, .codec = {.bits = 5, .spikes = true, .rotation = true}}}) {
    const auto group = ThreadGroup(2, mode);
    OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
      SumAndGather(rank, host, pool);
    });
  }
}

}  // namespace
}  // namespace nibble::comm
