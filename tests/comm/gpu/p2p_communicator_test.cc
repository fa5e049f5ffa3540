// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks that map each other's memory. Here they share a device, which --transport by name allows.

#include "comm/gpu/p2p_communicator.h"

#include <cstring>
#include <latch>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/float16.h"
#include "tests/comm/gpu/device_ranks.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;
using Mode = AllReduceOptions::Mode;

constexpr int64_t kRows = 3;
constexpr int64_t kRowSize = 150;
constexpr size_t kCount = kRows * kRowSize;

class P2pCommunicatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto devices = gpu::ListDevices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (devices->empty()) GTEST_SKIP() << "no CUDA device";
    options_.caps = devices->front();
    options_.caps.num_sms = 2;  // blocks: all ranks have to run at the same time here
    options_.transport = DeviceTransport::kP2p;
    options_.max_values = 1001;  // no whole number of 16 bytes
  }

  DeviceCommunicatorOptions options_;
};

std::vector<float> Values(int rank, int64_t seed) {
  testing::Random random(static_cast<uint64_t>(seed * 100 + rank));
  std::vector<float> values(kCount);
  for (float& x : values) x = ToFloat(ToBFloat16(random.Normal()));
  return values;
}

// Freeing memory waits for the device, and with it for ranks that wait for this one: what a rank
// allocates it keeps until all are through.
template <typename T>
gpu::DeviceBuffer<T> OnDevice(const std::vector<T>& values, const gpu::Stream& stream) {
  auto buffer = gpu::DeviceBuffer<T>::Create(values.size());
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_TRUE(
      gpu::CopyToDevice(buffer->data(), values.data(), buffer->size_bytes(), stream.get()).ok());
  return *std::move(buffer);
}
template <typename T>
void Write(const std::vector<T>& values, const gpu::DeviceBuffer<T>& buffer,
           const gpu::Stream& stream) {
  EXPECT_TRUE(
      gpu::CopyToDevice(buffer.data(), values.data(), buffer.size_bytes(), stream.get()).ok());
  EXPECT_TRUE(stream.Synchronize().ok());
}
template <typename T>
std::vector<T> FromDevice(const gpu::DeviceBuffer<T>& buffer, const gpu::Stream& stream) {
  std::vector<T> values(buffer.size());
  EXPECT_TRUE(
      gpu::CopyToHost(values.data(), buffer.data(), buffer.size_bytes(), stream.get()).ok());
  EXPECT_TRUE(stream.Synchronize().ok());
  return values;
}

// comm/flash of the host, over shared memory, is what it is compared with.
TEST_F(P2pCommunicatorTest, SumsAsTheHostDoes) {
  for (const int size : {2, 3}) {
    for (const AllReduceOptions& mode :
         {AllReduceOptions{.mode = Mode::kNone},
          {.mode = Mode::kFixed, .codec = {.bits = 16}},
          {.mode = Mode::kFixed, .codec = {.bits = 4, .rotation = true}},
          {.mode = Mode::kFixed, .codec = {.bits = 6, .group_size = 32, .spikes = true}}}) {
      if (size == 3 && mode.codec.bits != 4) continue;
      const auto group = ThreadGroup(size, mode);
      OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
        auto device = DeviceCommunicator::Create(host, options_, pool);
        ASSERT_TRUE(device.ok()) << device.status();
        EXPECT_EQ((*device)->name(), "p2p");
        EXPECT_TRUE((*device)->capturable());
        EXPECT_EQ((*device)->p2p()->rank(), rank);
        auto stream = gpu::Stream::Create();
        ASSERT_TRUE(stream.ok());
        const auto data = OnDevice(std::vector<float>(kCount), *stream);
        const auto half_data = OnDevice(std::vector<uint16_t>(kCount), *stream);
        for (const bool exact : {false, true}) {
          std::vector<float> expected = Values(rank, 1);
          ASSERT_TRUE(host->AllReduce({.data = expected.data(),
                                       .num_rows = kRows,
                                       .row_size = kRowSize,
                                       .exact = exact},
                                      pool)
                          .ok());
          Write(Values(rank, 1), data, *stream);
          ASSERT_TRUE((*device)
                          ->AllReduce({.data = data.data(),
                                       .dtype = DType::kF32,
                                       .num_rows = kRows,
                                       .row_size = kRowSize,
                                       .exact = exact},
                                      stream->get())
                          .ok());
          EXPECT_EQ(FromDevice(data, *stream), expected);
          // bf16 rows: float32's sums, rounded once.
          std::vector<uint16_t> halves(kCount);
          for (size_t i = 0; i < kCount; ++i) halves[i] = ToBFloat16(Values(rank, 1)[i]).bits;
          Write(halves, half_data, *stream);
          ASSERT_TRUE((*device)
                          ->AllReduce({.data = half_data.data(),
                                       .num_rows = kRows,
                                       .row_size = kRowSize,
                                       .exact = exact},
                                      stream->get())
                          .ok());
          for (size_t i = 0; i < kCount; ++i) halves[i] = ToBFloat16(expected[i]).bits;
          EXPECT_EQ(FromDevice(half_data, *stream), halves);
        }
        EXPECT_TRUE((*device)->Check().ok());
        EXPECT_TRUE(host->Barrier().ok());  // memory is there until all are through
      });
    }
  }
}

// A captured all-reduce is replayed: nothing of an operation's number is in the launch.
TEST_F(P2pCommunicatorTest, IsCapturedAndReplayed) {
  const auto group = ThreadGroup(2, {.mode = Mode::kFixed, .codec = {.bits = 8}});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    auto device = DeviceCommunicator::Create(host, options_, pool);
    ASSERT_TRUE(device.ok()) << device.status();
    auto stream = gpu::Stream::Create();
    ASSERT_TRUE(stream.ok());
    auto data = gpu::DeviceBuffer<float>::Create(kCount);
    ASSERT_TRUE(data.ok());
    ASSERT_TRUE(gpu::GraphExec::BeginCapture(stream->get()).ok());
    const absl::Status launched = (*device)->AllReduce(
        {.data = data->data(), .dtype = DType::kF32, .num_rows = kRows, .row_size = kRowSize},
        stream->get());
    auto graph = gpu::GraphExec::EndCapture(stream->get());
    ASSERT_TRUE(launched.ok()) << launched;
    ASSERT_TRUE(graph.ok()) << graph.status();
    for (int64_t replay = 0; replay < 4; ++replay) {
      std::vector<float> expected = Values(rank, replay);
      ASSERT_TRUE(
          gpu::CopyToDevice(data->data(), expected.data(), data->size_bytes(), stream->get()).ok());
      ASSERT_TRUE(graph->Launch(stream->get()).ok());
      ASSERT_TRUE(
          host->AllReduce({.data = expected.data(), .num_rows = kRows, .row_size = kRowSize}, pool)
              .ok());
      EXPECT_EQ(FromDevice(*data, *stream), expected);
    }
    EXPECT_TRUE(host->Barrier().ok());
  });
}

TEST_F(P2pCommunicatorTest, GathersBytesOfAnySize) {
  options_.max_values = 0;  // the smallest regions: several parts
  const auto group = ThreadGroup(3, {.mode = Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    auto device = DeviceCommunicator::Create(host, options_, pool);
    ASSERT_TRUE(device.ok()) << device.status();
    auto stream = gpu::Stream::Create();
    ASSERT_TRUE(stream.ok());
    std::vector<gpu::DeviceBuffer<uint8_t>> buffers;
    for (const size_t bytes : {size_t{1}, size_t{16}, size_t{4099}, size_t{70'000}}) {
      std::vector<uint8_t> mine(bytes);
      for (size_t i = 0; i < bytes; ++i) mine[i] = static_cast<uint8_t>(i * 7 + i / 251 + rank);
      buffers.push_back(OnDevice(mine, *stream));
      const uint8_t* const send = buffers.back().data();
      buffers.push_back(OnDevice(std::vector<uint8_t>(3 * bytes), *stream));
      const gpu::DeviceBuffer<uint8_t>& recv = buffers.back();
      ASSERT_TRUE(
          (*device)->AllGather(send, static_cast<int64_t>(bytes), recv.data(), stream->get()).ok());
      const std::vector<uint8_t> got = FromDevice(recv, *stream);
      for (size_t i = 0; i < got.size(); ++i) {
        const size_t j = i % bytes;
        ASSERT_EQ(got[i], static_cast<uint8_t>(j * 7 + j / 251 + i / bytes))
            << "byte " << i << " of 3 times " << bytes << ": " << (*device)->Check();
      }
    }
    EXPECT_TRUE(host->Barrier().ok());
  });
}

// Which kernels of one device run at a time is the driver's choice: not what `auto` takes.
TEST_F(P2pCommunicatorTest, AutoTakesTheHostWhereRanksShareADevice) {
  options_.transport = DeviceTransport::kAuto;
  const auto group = ThreadGroup(2, {.mode = Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool* pool) {
    auto device = DeviceCommunicator::Create(host, options_, pool);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ((*device)->name(), "host");
    EXPECT_EQ((*device)->p2p(), nullptr);
  });
}

TEST_F(P2pCommunicatorTest, MoreRanksThanFlagsHaveRoomForAreRefused) {
  const auto group = ThreadGroup(9, {.mode = Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool* pool) {
    const absl::Status status = DeviceCommunicator::Create(host, options_, pool).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("9 ranks, the limit"));
  });
}

TEST_F(P2pCommunicatorTest, AnAbortEndsTheKernelsOfItsPeers) {
  const auto group = ThreadGroup(2, {.mode = Mode::kNone});
  std::latch both_are_there(2);
  std::latch is_over(2);
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    auto device = DeviceCommunicator::Create(host, options_, pool);
    both_are_there.arrive_and_wait();
    ASSERT_TRUE(device.ok()) << device.status();
    auto stream = gpu::Stream::Create();
    ASSERT_TRUE(stream.ok());
    const auto data = OnDevice(Values(rank, 1), *stream);
    const DeviceAllReduceArgs args = {
        .data = data.data(), .dtype = DType::kF32, .num_rows = kRows, .row_size = kRowSize};
    if (rank == 0) {
      EXPECT_TRUE((*device)->AllReduce(args, stream->get()).ok());
      EXPECT_TRUE(stream->Synchronize().ok());
      const absl::Status status = (*device)->Check();
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 has given up"));
      EXPECT_EQ((*device)->AllReduce(args, stream->get()), status);
    } else {
      (*device)->Abort("formed anew");
      EXPECT_EQ((*device)->Check(), absl::AbortedError("formed anew"));
      EXPECT_EQ((*device)->AllReduce(args, stream->get()), absl::AbortedError("formed anew"));
    }
    is_over.arrive_and_wait();
  });
}

TEST_F(P2pCommunicatorTest, AMeasuredPolicyIsTheSameOnAllRanks) {
  options_.measure_policy = true;
  options_.max_values = 1024;
  options_.row_size = 512;
  const auto group = ThreadGroup(2, {.mode = Mode::kNone});
  std::vector<std::string> policies(2);
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    auto device = DeviceCommunicator::Create(host, options_, pool);
    ASSERT_TRUE(device.ok()) << device.status();
    policies[static_cast<size_t>(rank)] = Serialize((*device)->p2p()->policy());
    EXPECT_TRUE(host->Barrier().ok());
  });
  EXPECT_EQ(policies[0], policies[1]);
  EXPECT_TRUE(ParsePolicy(policies[0]).ok());
}

// The peers of a rank that fails its self-test wait for it on their devices until it tells them.
TEST_F(P2pCommunicatorTest, WhatOneRankCannotSumAllRanksRefuse) {
  options_.max_values = 1024;
  const auto group = ThreadGroup(2, {.mode = Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    DeviceCommunicatorOptions own = options_;
    const int group_size = rank == 1 ? 48 : 32;
    own.policy.choices = {{.codec = {.bits = 4, .group_size = group_size}}};
    const absl::Status status = DeviceCommunicator::Create(host, own, pool).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 has given up"));
    // What comes next meets its like.
    std::vector<int> ranks(2);
    EXPECT_TRUE(host->AllGather(&rank, sizeof(rank), ranks.data()).ok());
    EXPECT_THAT(ranks, ::testing::ElementsAre(0, 1));
  });
}

// The peers of a rank that cannot launch wait for it on their devices, and learn why.
TEST_F(P2pCommunicatorTest, WhatOneRankCannotMeasureAllRanksRefuse) {
  options_.measure_policy = true;
  options_.max_values = 1024;
  options_.row_size = 512;
  const auto group = ThreadGroup(2, {.mode = Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    DeviceCommunicatorOptions own = options_;
    if (rank == 0) own.codec.group_size = 48;
    const absl::Status status = DeviceCommunicator::Create(host, own, pool).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr("48"));
    // What comes next meets its like.
    std::vector<int> ranks(2);
    EXPECT_TRUE(host->AllGather(&rank, sizeof(rank), ranks.data()).ok());
    EXPECT_THAT(ranks, ::testing::ElementsAre(0, 1));
  });
}

}  // namespace
}  // namespace nibble::comm
