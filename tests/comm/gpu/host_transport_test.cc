// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Device memory summed by way of the host: the bits are those of the host's communicator.
#include <algorithm>
#include <latch>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/stream.h"
#include "base/float16.h"
#include "comm/gpu/device_communicator.h"
#include "tests/comm/gpu/device_ranks.h"
#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kRows = 5;
constexpr int64_t kRowSize = 131;
constexpr size_t kCount = kRows * kRowSize;

class HostTransportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto devices = gpu::ListDevices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (devices->empty()) GTEST_SKIP() << "no CUDA device";
    options_.caps = devices->front();
    options_.transport = DeviceTransport::kHost;
    options_.max_values = static_cast<int64_t>(kCount);
  }

  DeviceCommunicatorOptions options_;
};

std::vector<float> Values(int rank) {
  testing::Random random(static_cast<uint64_t>(100 + rank));
  std::vector<float> values(kCount);
  for (float& x : values) x = ToFloat(ToBFloat16(random.Normal()));
  return values;
}

template <typename T>
std::vector<T> RunOnDevice(DeviceCommunicator* device, std::vector<T> values, bool exact) {
  const DType dtype = sizeof(T) == 4 ? DType::kF32 : DType::kBf16;
  auto stream = gpu::Stream::Create();
  auto data = gpu::DeviceBuffer<T>::Create(values.size());
  EXPECT_TRUE(stream.ok() && data.ok());
  const size_t bytes = values.size() * sizeof(T);
  EXPECT_TRUE(gpu::CopyToDevice(data->data(), values.data(), bytes, stream->get()).ok());
  const absl::Status status = device->AllReduce({.data = data->data(),
                                                 .dtype = dtype,
                                                 .num_rows = kRows,
                                                 .row_size = kRowSize,
                                                 .exact = exact},
                                                stream->get());
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(gpu::CopyToHost(values.data(), data->data(), bytes, stream->get()).ok());
  EXPECT_TRUE(stream->Synchronize().ok());
  EXPECT_TRUE(device->Check().ok());
  return values;
}

TEST_F(HostTransportTest, SumsAsTheHostDoes) {
  using Mode = AllReduceOptions::Mode;
  for (const int size : {1, 2, 3}) {
    for (const AllReduceOptions& mode :
         {AllReduceOptions{.mode = Mode::kNone}, {.mode = Mode::kFixed, .codec = {.bits = 4}}}) {
      const auto group = ThreadGroup(size, mode);
      OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
        auto device = DeviceCommunicator::Create(host, options_, pool);
        ASSERT_TRUE(device.ok()) << device.status();
        EXPECT_EQ((*device)->name(), "host");
        EXPECT_FALSE((*device)->capturable());
        EXPECT_EQ((*device)->rank(), rank);
        EXPECT_EQ((*device)->size(), size);
        for (const bool exact : {false, true}) {
          std::vector<float> expected = Values(rank);
          ASSERT_TRUE(host->AllReduce({.data = expected.data(),
                                       .num_rows = kRows,
                                       .row_size = kRowSize,
                                       .exact = exact},
                                      pool)
                          .ok());
          EXPECT_EQ(RunOnDevice(device->get(), Values(rank), exact), expected);
          std::vector<uint16_t> halves(kCount);
          std::vector<uint16_t> expected_halves(kCount);
          for (size_t i = 0; i < kCount; ++i) {
            halves[i] = ToBFloat16(Values(rank)[i]).bits;
            expected_halves[i] = ToBFloat16(expected[i]).bits;
          }
          EXPECT_EQ(RunOnDevice(device->get(), halves, exact), expected_halves);
        }
      });
    }
  }
}

TEST_F(HostTransportTest, GathersMoreThanAPart) {
  constexpr size_t kBytes = (size_t{1} << 20) + 13;
  const auto group = ThreadGroup(2, {.mode = AllReduceOptions::Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    auto device = DeviceCommunicator::Create(host, options_, pool);
    ASSERT_TRUE(device.ok()) << device.status();
    auto stream = gpu::Stream::Create();
    auto send = gpu::DeviceBuffer<uint8_t>::Create(kBytes);
    auto recv = gpu::DeviceBuffer<uint8_t>::Create(2 * kBytes);
    ASSERT_TRUE(stream.ok() && send.ok() && recv.ok());
    std::vector<uint8_t> bytes(kBytes);
    for (size_t i = 0; i < kBytes; ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 251 + rank);
    ASSERT_TRUE(gpu::CopyToDevice(send->data(), bytes.data(), kBytes, stream->get()).ok());
    ASSERT_TRUE((*device)->AllGather(send->data(), kBytes, recv->data(), stream->get()).ok());
    std::vector<uint8_t> got(2 * kBytes);
    ASSERT_TRUE(gpu::CopyToHost(got.data(), recv->data(), got.size(), stream->get()).ok());
    ASSERT_TRUE(stream->Synchronize().ok());
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t j = i % kBytes;
      ASSERT_EQ(got[i], static_cast<uint8_t>(j * 7 + j / 251 + i / kBytes)) << i;
    }
  });
}

TEST_F(HostTransportTest, RefusesWhatItCannotDo) {
  const auto group = ThreadGroup(1, {.mode = AllReduceOptions::Mode::kNone});
  OnRanks(group, [&](int, Communicator* host, ThreadPool* pool) {
    auto device = DeviceCommunicator::Create(host, options_, pool);
    ASSERT_TRUE(device.ok()) << device.status();
    float value = 0.0F;
    const auto message = [&](const DeviceAllReduceArgs& args) {
      const absl::Status status = (*device)->AllReduce(args, nullptr);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      return std::string(status.message());
    };
    EXPECT_THAT(message({.data = &value, .num_rows = 6, .row_size = kRowSize}),
                HasSubstr("6 rows of 131 values, the limit is 655"));
    EXPECT_THAT(message({.data = &value, .num_rows = int64_t{1} << 40, .row_size = 1 << 30}),
                HasSubstr("the limit is 655"));
    EXPECT_THAT(message({.data = &value, .dtype = DType::kF16, .num_rows = 1, .row_size = 1}),
                HasSubstr("float16"));
    EXPECT_THAT(message({.num_rows = 1, .row_size = 1}), HasSubstr("without data"));
    EXPECT_EQ((*device)->AllGather(nullptr, -1, nullptr, nullptr).code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE((*device)->Check().ok());  // refusing breaks nothing
  });
}

TEST_F(HostTransportTest, RanksMustWantTheSame) {
  const auto group = ThreadGroup(2, {.mode = AllReduceOptions::Mode::kNone});
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    DeviceCommunicatorOptions options = options_;
    options.max_values = 10 + rank;
    const absl::Status status = DeviceCommunicator::Create(host, options, pool).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 wants all-reduces of 11 values"));
  });
}

TEST_F(HostTransportTest, AnAbortEndsItAndItsPeers) {
  const auto group = ThreadGroup(2, {.mode = AllReduceOptions::Mode::kNone});
  std::latch both_are_there(2);
  OnRanks(group, [&](int rank, Communicator* host, ThreadPool* pool) {
    auto device = DeviceCommunicator::Create(host, options_, pool);
    both_are_there.arrive_and_wait();
    ASSERT_TRUE(device.ok()) << device.status();
    if (rank == 1) return (*device)->Abort("formed anew");
    auto data = gpu::DeviceBuffer<float>::Create(kCount);
    ASSERT_TRUE(data.ok());
    auto stream = gpu::Stream::Create();
    ASSERT_TRUE(stream.ok());
    const absl::Status status = (*device)->AllReduce(
        {.data = data->data(), .dtype = DType::kF32, .num_rows = kRows, .row_size = kRowSize},
        stream->get());
    EXPECT_FALSE(status.ok());
    EXPECT_EQ((*device)->Check(), status);
  });
}

}  // namespace
}  // namespace nibble::comm
