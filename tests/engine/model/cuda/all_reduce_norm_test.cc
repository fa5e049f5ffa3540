// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The fused all-reduce and norm has the bits of the two after each other.

#include "engine/model/cuda/all_reduce_norm.h"

#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/float16.h"
#include "base/thread_pool.h"
#include "comm/group.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

constexpr int64_t kRows = 5;
constexpr int64_t kHidden = 272;
constexpr size_t kCount = kRows * kHidden;

// What both leave behind.
struct Outcome {
  std::vector<float> x;
  std::vector<float> values;
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> sums;

  friend bool operator==(const Outcome&, const Outcome&) = default;
};

// A rank's memory; kept until all ranks are through, as freeing waits for the device.
struct Memory {
  gpu::Stream stream;
  gpu::DeviceBuffer<float> x, weight, values, scales;
  gpu::DeviceBuffer<uint8_t> delta;
  gpu::DeviceBuffer<int8_t> codes;
  gpu::DeviceBuffer<int32_t> sums;

  static absl::StatusOr<Memory> Create() {
    Memory memory;
    NIBBLE_ASSIGN_OR_RETURN(memory.stream, gpu::Stream::Create());
    NIBBLE_ASSIGN_OR_RETURN(memory.x, gpu::DeviceBuffer<float>::Create(kCount));
    NIBBLE_ASSIGN_OR_RETURN(memory.weight, gpu::DeviceBuffer<float>::Create(kHidden));
    NIBBLE_ASSIGN_OR_RETURN(memory.values, gpu::DeviceBuffer<float>::Create(kCount));
    NIBBLE_ASSIGN_OR_RETURN(memory.scales, gpu::DeviceBuffer<float>::Create(kRows));
    NIBBLE_ASSIGN_OR_RETURN(memory.delta, gpu::DeviceBuffer<uint8_t>::Create(kCount * 4));
    NIBBLE_ASSIGN_OR_RETURN(memory.codes, gpu::DeviceBuffer<int8_t>::Create(kCount));
    NIBBLE_ASSIGN_OR_RETURN(memory.sums, gpu::DeviceBuffer<int32_t>::Create(kRows));
    return memory;
  }
};

template <typename T>
std::vector<T> FromDevice(const gpu::DeviceBuffer<T>& buffer, const gpu::Stream& stream) {
  std::vector<T> values(buffer.size());
  EXPECT_TRUE(
      gpu::CopyToHost(values.data(), buffer.data(), buffer.size_bytes(), stream.get()).ok());
  EXPECT_TRUE(stream.Synchronize().ok());
  return values;
}

std::vector<float> Values(uint64_t seed, size_t count) {
  testing::Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = random.Normal();
  return values;
}

Outcome RunOnce(comm::DeviceCommunicator* communicator, DType dtype, bool fused, Memory* memory) {
  const int rank = communicator->rank();
  cudaStream_t stream = memory->stream.get();
  const std::vector<float> x = Values(1, kCount);
  const std::vector<float> weight = Values(2, kHidden);
  const std::vector<float> delta = Values(static_cast<uint64_t>(10 + rank), kCount);
  std::vector<uint16_t> halves(kCount);
  for (size_t i = 0; i < kCount; ++i) halves[i] = ToBFloat16(delta[i]).bits;
  const bool is_bf16 = dtype == DType::kBf16;
  EXPECT_TRUE(gpu::CopyToDevice(memory->x.data(), x.data(), kCount * 4, stream).ok());
  EXPECT_TRUE(gpu::CopyToDevice(memory->weight.data(), weight.data(), kHidden * 4, stream).ok());
  EXPECT_TRUE(gpu::CopyToDevice(memory->delta.data(),
                                is_bf16 ? static_cast<const void*>(halves.data()) : delta.data(),
                                kCount * SizeOf(dtype), stream)
                  .ok());
  const comm::DeviceAllReduceArgs sum = {
      .data = memory->delta.data(), .dtype = dtype, .num_rows = kRows, .row_size = kHidden};
  const kernels::cuda::RmsNormArgs norm = {
      .num_rows = kRows,
      .hidden = kHidden,
      .x = memory->x.data(),
      .x_stride = kHidden,
      .delta = {.data = memory->delta.data(), .dtype = dtype, .stride = kHidden},
      .weight = memory->weight.data(),
      .out = {.values = {.data = memory->values.data(), .dtype = DType::kF32, .stride = kHidden},
              .quantized = {.values = memory->codes.data(),
                            .scales = memory->scales.data(),
                            .sums = memory->sums.data(),
                            .stride = kHidden}}};
  if (fused) {
    const absl::Status status = AllReduceNorm(communicator, sum, norm, stream);
    EXPECT_TRUE(status.ok()) << status;
  } else {
    EXPECT_TRUE(communicator->AllReduce(sum, stream).ok());
    const absl::Status status = kernels::cuda::RmsNorm(norm, stream);
    EXPECT_TRUE(status.ok()) << status;
  }
  Outcome outcome = {
      FromDevice(memory->x, memory->stream), FromDevice(memory->values, memory->stream),
      FromDevice(memory->codes, memory->stream), FromDevice(memory->scales, memory->stream),
      FromDevice(memory->sums, memory->stream)};
  EXPECT_TRUE(communicator->Check().ok()) << communicator->Check();
  return outcome;
}

TEST(AllReduceNorm, HasTheBitsOfBothAfterEachOther) {
  const auto devices = gpu::ListDevices();
  ASSERT_TRUE(devices.ok()) << devices.status();
  if (devices->empty()) GTEST_SKIP() << "no CUDA device";
  using Mode = comm::AllReduceOptions::Mode;
  for (const comm::AllReduceOptions& mode :
       {comm::AllReduceOptions{.mode = Mode::kNone},
        {.mode = Mode::kFixed, .codec = {.bits = 4, .spikes = true}},
        {.mode = Mode::kFixed, .codec = {.bits = 3}}}) {  // which has no kernel of its own
    for (const comm::DeviceTransport transport :
         {comm::DeviceTransport::kP2p, comm::DeviceTransport::kHost}) {
      auto group = comm::MakeThreadGroup(3, mode);
      ASSERT_TRUE(group.ok());
      std::vector<std::thread> ranks;
      for (const auto& host : *group) {
        ranks.emplace_back([&, host = host.get()] {
          ThreadPool pool(1);
          comm::DeviceCommunicatorOptions options = {
              .caps = devices->front(), .transport = transport, .max_values = kCount};
          options.caps.num_sms = 2;
          auto device = comm::DeviceCommunicator::Create(host, options, &pool);
          ASSERT_TRUE(device.ok()) << device.status();
          auto memory = Memory::Create();
          ASSERT_TRUE(memory.ok()) << memory.status();
          for (const DType dtype : {DType::kF32, DType::kBf16}) {
            const Outcome expected = RunOnce(device->get(), dtype, /*fused=*/false, &*memory);
            EXPECT_TRUE(RunOnce(device->get(), dtype, /*fused=*/true, &*memory) == expected);
          }
          EXPECT_TRUE(host->Barrier().ok());
        });
      }
      for (std::thread& rank : ranks) rank.join();
    }
  }
}

TEST(AllReduceNorm, RefusesANormOfOtherRows) {
  float value = 0.0F;
  const absl::Status status =
      AllReduceNorm(nullptr, {.data = &value, .num_rows = 3, .row_size = 8},
                    {.num_rows = 2, .hidden = 8, .delta = {.data = &value, .stride = 8}}, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("a norm of 2 rows"));
}

}  // namespace
}  // namespace nibble::engine
