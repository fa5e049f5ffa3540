// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A device writes the bytes of the CPU's codec and reads its floats, and nothing beside them.

#include "comm/codec/cuda/codec.h"

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/float16.h"
#include "tests/comm/codec/codec_cases.h"

namespace nibble::comm {
namespace {

using ::nibble::testing::Random;
using ::testing::HasSubstr;

constexpr uint8_t kCanary = 0xc5;
constexpr size_t kCanaries = 64;

class CodecCudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto devices = gpu::ListDevices();
    ASSERT_TRUE(devices.ok()) << devices.status();
    if (devices->empty()) GTEST_SKIP() << "no CUDA device";
    auto stream = gpu::Stream::Create();
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *std::move(stream);
  }

  // On the device, with canaries behind.
  gpu::DeviceBuffer<uint8_t> OnDevice(const void* data, size_t bytes) {
    auto buffer = gpu::DeviceBuffer<uint8_t>::Create(bytes + kCanaries);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    std::vector<uint8_t> image(bytes + kCanaries, kCanary);
    if (data != nullptr) std::memcpy(image.data(), data, bytes);
    EXPECT_TRUE(gpu::CopyToDevice(buffer->data(), image.data(), image.size(), stream_.get()).ok());
    return *std::move(buffer);
  }
  // All but the canaries, which must be as they were.
  std::string FromDevice(const gpu::DeviceBuffer<uint8_t>& buffer) {
    std::string image(buffer.size(), '\0');
    EXPECT_TRUE(gpu::CopyToHost(image.data(), buffer.data(), image.size(), stream_.get()).ok());
    EXPECT_TRUE(stream_.Synchronize().ok());
    for (size_t i = 0; i < kCanaries; ++i) {
      EXPECT_EQ(static_cast<uint8_t>(image[image.size() - 1 - i]), kCanary);
    }
    image.resize(image.size() - kCanaries);
    return image;
  }

  // Codes and back on the device and on the CPU, of rows of `T`: float, or uint16_t that is bf16.
  template <typename T>
  void Compare(const CodecDesc& desc, int64_t num_rows, int64_t row_size, int64_t first,
               std::vector<std::vector<float>> values);
  template <typename T>
  void CompareDecoding(const CodecDesc& desc, const RowGroups& groups, int64_t num_rows,
                       int64_t first, const std::vector<std::string>& codes);

  gpu::Stream stream_;
};

template <typename T>
constexpr DType kDType = sizeof(T) == 4 ? DType::kF32 : DType::kBf16;

template <typename T>
std::vector<T> Stored(const std::vector<float>& values) {
  std::vector<T> stored(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    if constexpr (sizeof(T) == 4) {
      stored[i] = values[i];
    } else {
      stored[i] = ToBFloat16(values[i]).bits;
    }
  }
  return stored;
}
float Loaded(float value) { return value; }
float Loaded(uint16_t bits) { return ToFloat(BFloat16{bits}); }

// NaN has no bits to compare.
template <typename T>
::testing::AssertionResult SameValues(const std::string& actual, const std::vector<T>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    T value;
    std::memcpy(&value, actual.data() + i * sizeof(T), sizeof(T));
    if (std::isnan(Loaded(value)) && std::isnan(Loaded(expected[i]))) continue;
    if (std::memcmp(&value, &expected[i], sizeof(T)) != 0) {
      return ::testing::AssertionFailure()
             << "value " << i << ": " << Loaded(value) << ", the CPU has " << Loaded(expected[i]);
    }
  }
  return ::testing::AssertionSuccess();
}

template <typename T>
void CodecCudaTest::Compare(const CodecDesc& desc, int64_t num_rows, int64_t row_size,
                            int64_t first, std::vector<std::vector<float>> values) {
  const RowGroups groups = {row_size, desc.group_size};
  const int64_t count = num_rows * groups.groups_per_row() - first;
  std::vector<std::string> codes;
  for (std::vector<float>& x : values) {
    std::vector<T> stored = Stored<T>(x);
    for (size_t i = 0; i < x.size(); ++i) x[i] = Loaded(stored[i]);
    std::string expected(static_cast<size_t>(EncodedBytes(desc, count)), '\0');
    Encode(desc, groups, x.data(), first, count, reinterpret_cast<uint8_t*>(expected.data()),
           Isa::kRef);
    const auto rows = OnDevice(stored.data(), stored.size() * sizeof(T));
    const auto out = OnDevice(nullptr, expected.size());
    const absl::Status status =
        cuda::Encode(desc, {.data = rows.data(), .dtype = kDType<T>, .groups = groups}, first,
                     count, out.data(), stream_.get());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(FromDevice(out), expected) << "encoding";
    codes.push_back(expected);
  }
  CompareDecoding<T>(desc, groups, num_rows, first, codes);
}

template <typename T>
void CodecCudaTest::CompareDecoding(const CodecDesc& desc, const RowGroups& groups,
                                    int64_t num_rows, int64_t first,
                                    const std::vector<std::string>& codes) {
  const int64_t count = num_rows * groups.groups_per_row() - first;
  const int num_pieces = static_cast<int>(codes.size());
  std::vector<gpu::DeviceBuffer<uint8_t>> buffers;
  std::vector<const uint8_t*> pieces;
  std::vector<const uint8_t*> host_pieces;
  for (const std::string& code : codes) {
    buffers.push_back(OnDevice(code.data(), code.size()));
    pieces.push_back(buffers.back().data());
    host_pieces.push_back(reinterpret_cast<const uint8_t*>(code.data()));
  }
  // What is decoded, over values that stay as they are before the first group.
  std::vector<float> sums(static_cast<size_t>(num_rows * groups.row_size), 3.0F);
  const auto rows = OnDevice(Stored<T>(sums).data(), sums.size() * sizeof(T));
  DecodeSum(desc, groups, host_pieces.data(), num_pieces, first, count, sums.data(), Isa::kRef);
  const absl::Status status =
      cuda::DecodeSum(desc, {.data = rows.data(), .dtype = kDType<T>, .groups = groups},
                      pieces.data(), num_pieces, first, count, stream_.get());
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_TRUE(SameValues(FromDevice(rows), Stored<T>(sums))) << "decoding";

  // In place of the last piece.
  std::string reduced(codes[0].size(), '\0');
  ReduceEncoded(desc, host_pieces.data(), num_pieces, count,
                reinterpret_cast<uint8_t*>(reduced.data()), Isa::kRef);
  const absl::Status reducing = cuda::ReduceEncoded(desc, pieces.data(), num_pieces, count,
                                                    buffers.back().data(), stream_.get());
  ASSERT_TRUE(reducing.ok()) << reducing;
  const std::string actual = FromDevice(buffers.back());
  if (desc.is_integer()) {
    ASSERT_EQ(actual, reduced) << "reduction";
  } else if (desc.bits == 32) {
    std::vector<float> floats(reduced.size() / 4);
    std::memcpy(floats.data(), reduced.data(), reduced.size());
    ASSERT_TRUE(SameValues(actual, floats)) << "reduction";
  } else {
    std::vector<uint16_t> halves(reduced.size() / 2);
    std::memcpy(halves.data(), reduced.data(), reduced.size());
    ASSERT_TRUE(SameValues(actual, halves)) << "reduction";
  }
}

TEST_F(CodecCudaTest, EqualsTheCpu) {
  Random random(1);
  int which = 0;
  for (const CodecDesc& desc : AllCodecs()) {
    for (const int64_t row_size : {1, 31, 127, 200, 1032}) {
      const int64_t num_rows = row_size > 1000 ? 1 : 3;
      const RowGroups groups = {row_size, desc.group_size};
      const int64_t first = random.Int(0, groups.groups_per_row() - 1);
      std::vector<std::vector<float>> values;
      for (int piece = 0; piece < 3; ++piece) {
        values.push_back(HardValues(&random, num_rows * row_size, piece < 2));
      }
      SCOPED_TRACE(ToString(desc) + " rows of " + std::to_string(row_size));
      if (which++ % 2 == 0) {
        ASSERT_NO_FATAL_FAILURE(Compare<float>(desc, num_rows, row_size, first, values));
      } else {
        ASSERT_NO_FATAL_FAILURE(Compare<uint16_t>(desc, num_rows, row_size, first, values));
      }
    }
  }
}

// More groups than a block has, and a number that leaves lanes without one.
TEST_F(CodecCudaTest, ManyBlocks) {
  Random random(4);
  for (const CodecDesc& desc : {CodecDesc{.bits = 5, .group_size = 32, .spikes = true},
                                CodecDesc{.bits = 4, .group_size = 128},
                                CodecDesc{.bits = 3, .group_size = 64, .rotation = true}}) {
    SCOPED_TRACE(ToString(desc));
    ASSERT_NO_FATAL_FAILURE(
        Compare<uint16_t>(desc, 7, 1500, 0, {HardValues(&random, 7 * 1500, true)}));
  }
}

// What peers may send instead of codes.
TEST_F(CodecCudaTest, ReadsAnyBytesAsTheCpuDoes) {
  Random random(2);
  for (const CodecDesc& desc : AllCodecs()) {
    const RowGroups groups = {300, desc.group_size};
    const int64_t count = 2 * groups.groups_per_row();
    for (const bool all_ones : {false, true}) {
      std::vector<std::string> codes;
      for (int piece = 0; piece < 2; ++piece) {
        std::string bytes(static_cast<size_t>(EncodedBytes(desc, count)), '\xff');
        for (char& byte : bytes) {
          if (!all_ones) byte = static_cast<char>(random.Bits());
        }
        codes.push_back(bytes);
      }
      SCOPED_TRACE(ToString(desc));
      ASSERT_NO_FATAL_FAILURE(CompareDecoding<float>(desc, groups, 2, 0, codes));
    }
  }
}

// Ties, ends of the range, and scales on both sides of what a format can hold.
TEST_F(CodecCudaTest, RoundsAsTheCpuDoes) {
  Random random(3);
  for (const CodecDesc& desc : AllCodecs()) {
    if (desc.rotation) continue;
    std::vector<float> x(static_cast<size_t>(desc.group_size) * 64);
    for (size_t i = 0; i < x.size(); ++i) {
      const auto group = static_cast<int>(i) / desc.group_size;
      const float scale = std::ldexp(1.0F, (group - 32) * 4) * (group % 3 == 0 ? 1.001F : 1.0F);
      x[i] = scale * 0.5F * static_cast<float>(random.Int(-255, 255));
    }
    SCOPED_TRACE(ToString(desc));
    ASSERT_NO_FATAL_FAILURE(Compare<float>(desc, 1, static_cast<int64_t>(x.size()), 0, {x}));
  }
}

TEST_F(CodecCudaTest, RefusesWhatItCannotDo) {
  const CodecDesc desc = {.bits = 4};
  const auto out = OnDevice(nullptr, 64);
  const auto refusal = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const auto encode = [&](const CodecDesc& codec, const cuda::DeviceRows& rows, int64_t count,
                          int offset) {
    return refusal(cuda::Encode(codec, rows, 0, count, out.data() + offset, stream_.get()));
  };
  EXPECT_THAT(encode({.bits = 7}, {}, 1, 0), HasSubstr("7 bits"));
  EXPECT_THAT(encode(desc, {.groups = {100, 64}}, 1, 0), HasSubstr("groups of 64"));
  EXPECT_THAT(encode(desc, {.dtype = DType::kF16, .groups = {100, 128}}, 1, 0),
              HasSubstr("float16"));
  EXPECT_THAT(encode(desc, {.groups = {0, 128}}, 1, 0), HasSubstr("rows of 0 values"));
  EXPECT_THAT(encode(desc, {.groups = {100, 128}}, int64_t{1} << 31, 0), HasSubstr("2147483648"));
  EXPECT_THAT(encode(desc, {.groups = {100, 128}}, 1, 3), HasSubstr("3 bytes behind"));
  const uint8_t* const piece = out.data();
  EXPECT_THAT(refusal(cuda::ReduceEncoded(desc, &piece, 0, 1, out.data(), stream_.get())),
              HasSubstr("0 pieces"));
  EXPECT_THAT(
      refusal(cuda::DecodeSum(desc, {.groups = {100, 128}}, &piece, 65, 0, 1, stream_.get())),
      HasSubstr("65 pieces"));
}

}  // namespace
}  // namespace nibble::comm
