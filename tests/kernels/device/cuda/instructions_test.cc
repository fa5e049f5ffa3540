// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Every instruction against its definition in plain loops: what the emulator does, and on a device
// what the hardware does.
#include "tests/kernels/device/cuda/instructions.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "base/float16.h"
#include "tests/base/cuda/device_test.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using Instructions = testing::DeviceTest;

// Everything runs some times: the emulator takes another order each time.
constexpr int kNumLaunches = 5;

std::vector<uint8_t> RandomBytes(size_t count, uint32_t seed) {
  testing::Random random(seed);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.Bits() >> 24);
  return bytes;
}

// D += A * B^T of int8; rows of `depth` bytes.
void MultiplyS8(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, size_t depth,
                std::vector<int>* d) {
  const size_t n = b.size() / depth;
  for (size_t i = 0; i < a.size() / depth; ++i) {
    for (size_t j = 0; j < n; ++j) {
      auto sum = static_cast<uint32_t>((*d)[i * n + j]);
      for (size_t k = 0; k < depth; ++k) {
        sum += static_cast<uint32_t>(static_cast<int8_t>(a[i * depth + k]) *
                                     static_cast<int8_t>(b[j * depth + k]));
      }
      (*d)[i * n + j] = static_cast<int>(sum);
    }
  }
}

TEST_F(Instructions, MmaS8) {
  for (uint32_t launch = 0; launch < kNumLaunches; ++launch) {
    auto a = RandomBytes(16 * 32, launch);
    auto b = RandomBytes(8 * 32, launch + 100);
    if (launch == 1) a.assign(a.size(), 0x80);
    if (launch == 1) b.assign(b.size(), 0x80);
    std::vector<int> expected(16 * 8);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<int>(i * 1000);
    expected[3] = std::numeric_limits<int>::max();  // sums wrap around
    const auto d = Upload(expected);
    ASSERT_TRUE(RunMmaS8(Upload(a).data(), Upload(b).data(), d.data(), stream_.get()).ok());
    MultiplyS8(a, b, 32, &expected);
    EXPECT_EQ(Download(d), expected);
  }
}

// Integers, so that sums are exact in any order.
template <typename Encode, typename Run>
void CheckFloatMma(testing::Random* random, std::vector<float>* a, std::vector<float>* b,
                   Encode encode, Run run) {
  a->resize(16 * 16);
  b->resize(8 * 16);
  std::vector<uint8_t> bytes[2];
  for (int i = 0; i < 2; ++i) {
    for (float& value : i == 0 ? *a : *b) {
      value = static_cast<float>(random->Int(-100, 100)) / 8;
      const uint16_t bits = encode(value);
      bytes[i].push_back(static_cast<uint8_t>(bits));
      bytes[i].push_back(static_cast<uint8_t>(bits >> 8));
    }
  }
  std::vector<float> expected(16 * 8);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<float>(i) * 0.5F;
  const std::vector<float> before = expected;
  for (size_t i = 0; i < expected.size(); ++i) {
    for (size_t k = 0; k < 16; ++k) expected[i] += (*a)[i / 8 * 16 + k] * (*b)[i % 8 * 16 + k];
  }
  EXPECT_EQ(run(bytes[0], bytes[1], before), expected);
}

TEST_F(Instructions, MmaBf16AndF16) {
  testing::Random random(7);
  std::vector<float> a;
  std::vector<float> b;
  for (int launch = 0; launch < kNumLaunches; ++launch) {
    for (const bool bf16 : {true, false}) {
      CheckFloatMma(
          &random, &a, &b,
          [&](float value) { return bf16 ? ToBFloat16(value).bits : ToFloat16(value).bits; },
          [&](const auto& a_bytes, const auto& b_bytes, const auto& before) {
            const auto d = Upload(before);
            const auto a_device = Upload(a_bytes);
            const auto b_device = Upload(b_bytes);
            const absl::Status status =
                bf16 ? RunMmaBf16(a_device.data(), b_device.data(), d.data(), stream_.get())
                     : RunMmaF16(a_device.data(), b_device.data(), d.data(), stream_.get());
            EXPECT_TRUE(status.ok()) << status;
            return Download(d);
          });
    }
  }
}

TEST_F(Instructions, LoadMatrix) {
  for (int launch = 0; launch < kNumLaunches; ++launch) {
    for (const size_t num_matrices : {size_t{2}, size_t{4}}) {
      for (const bool transposed : {false, true}) {
        if (num_matrices == 2 && !transposed) continue;  // nothing needs it
        std::vector<uint16_t> rows(num_matrices * 64);
        for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint16_t>(i * 77 + 5);
        std::vector<uint32_t> expected(32 * num_matrices);
        for (size_t lane = 0; lane < 32; ++lane) {
          for (size_t i = 0; i < num_matrices; ++i) {
            const auto at = [&](size_t half) -> uint32_t {
              const size_t row = transposed ? lane % 4 * 2 + half : lane / 4;
              const size_t column = transposed ? lane / 4 : lane % 4 * 2 + half;
              return rows[i * 64 + row * 8 + column];
            };
            expected[lane * num_matrices + i] = at(0) | at(1) << 16;
          }
        }
        const auto registers = Allocate<uint32_t>(expected.size());
        ASSERT_TRUE(RunLoadMatrix(static_cast<int>(num_matrices), transposed, Upload(rows).data(),
                                  registers.data(), stream_.get())
                        .ok());
        EXPECT_EQ(Download(registers), expected) << num_matrices << transposed;
      }
    }
  }
}

TEST_F(Instructions, Wgmma) {
  if (caps_.sm != 90) GTEST_SKIP() << "wgmma is of sm_90, this is sm_" << caps_.sm;
  for (uint32_t launch = 0; launch < kNumLaunches; ++launch) {
    for (const int n : {8, 16, 32, 64, 96, 128, 192, 256}) {
      const auto a = RandomBytes(64 * 128, launch);
      const auto b = RandomBytes(static_cast<size_t>(n) * 128, launch + 100);
      std::vector<int> expected(64 * static_cast<size_t>(n), 12345);
      const auto y = Upload(expected);
      ASSERT_TRUE(RunWgmma(n, Upload(a).data(), Upload(b).data(), y.data(), stream_.get()).ok());
      MultiplyS8(a, b, 128, &expected);
      EXPECT_EQ(Download(y), expected) << n;
    }
  }
}

// Of integers, so that sums are exact in any order.
TEST_F(Instructions, WgmmaBf16) {
  if (caps_.sm != 90) GTEST_SKIP() << "wgmma is of sm_90, this is sm_" << caps_.sm;
  constexpr size_t kDepth = 64;
  testing::Random random(11);
  const auto integers = [&](size_t rows, std::vector<float>* values) {
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < rows * kDepth; ++i) {
      values->push_back(static_cast<float>(random.Int(-100, 100)));
      const uint16_t bits = ToBFloat16(values->back()).bits;
      bytes.push_back(static_cast<uint8_t>(bits));
      bytes.push_back(static_cast<uint8_t>(bits >> 8));
    }
    return bytes;
  };
  for (int launch = 0; launch < kNumLaunches; ++launch) {
    std::vector<float> a;
    std::vector<float> b;
    const auto a_device = Upload(integers(64, &a));
    const auto b_device = Upload(integers(128, &b));
    std::vector<float> expected(size_t{64} * 128, 12345.0F);
    const auto y = Upload(expected);
    ASSERT_TRUE(RunWgmmaBf16(a_device.data(), b_device.data(), y.data(), stream_.get()).ok());
    for (size_t i = 0; i < expected.size(); ++i) {
      for (size_t k = 0; k < kDepth; ++k) {
        expected[i] += a[i / 128 * kDepth + k] * b[i % 128 * kDepth + k];
      }
    }
    EXPECT_EQ(Download(y), expected);
  }
}

struct Box {
  int element_bytes;
  int inner;
  int outer;
  bool swizzle;
  int x;
  int y;
};

TEST_F(Instructions, TensorCopy) {
  if (caps_.sm < 90) GTEST_SKIP() << "tensor copies are of sm_90, this is sm_" << caps_.sm;
  constexpr int kInnerBytes = 200;
  constexpr int kStride = 208;
  constexpr int kOuter = 21;
  const auto matrix = RandomBytes(kStride * kOuter, 3);
  const auto device = Upload(matrix);
  for (const Box& box :
       {Box{1, 128, 16, true, 0, 0}, Box{1, 128, 16, true, 64, 3}, Box{1, 128, 24, true, 128, 11},
        Box{1, 128, 8, true, -16, -3}, Box{2, 64, 8, true, 32, 1}, Box{4, 32, 5, true, 30, 19},
        Box{1, 48, 7, false, 5, 2}, Box{2, 24, 9, false, 90, 15}}) {
    auto map = gpu::MakeTensorMap2d({.global = device.data(),
                                     .element_bytes = box.element_bytes,
                                     .inner = kInnerBytes / box.element_bytes,
                                     .outer = kOuter,
                                     .row_stride_bytes = kStride,
                                     .box_inner = box.inner,
                                     .box_outer = box.outer,
                                     .swizzle_128 = box.swizzle});
    ASSERT_TRUE(map.ok()) << map.status();
    const int row_bytes = box.inner * box.element_bytes;
    std::vector<uint8_t> expected(static_cast<size_t>(row_bytes * box.outer));
    for (int row = 0; row < box.outer; ++row) {
      for (int i = 0; i < row_bytes; ++i) {
        const int x = box.x * box.element_bytes + i;
        const int y = box.y + row;
        const int chunk = box.swizzle ? i / 16 ^ row % 8 : i / 16;
        const bool inside = x >= 0 && x < kInnerBytes && y >= 0 && y < kOuter;
        expected[static_cast<size_t>(row * row_bytes + chunk * 16 + i % 16)] =
            inside ? matrix[static_cast<size_t>(y * kStride + x)] : uint8_t{0};
      }
    }
    for (int launch = 0; launch < kNumLaunches; ++launch) {
      const auto shared = Allocate<uint8_t>(expected.size());
      ASSERT_TRUE(RunTensorCopy(*map, box.x, box.y, static_cast<uint32_t>(expected.size()),
                                shared.data(), stream_.get())
                      .ok());
      EXPECT_EQ(Download(shared), expected) << box.x << " " << box.y;
    }
  }
}

TEST_F(Instructions, BulkPipeline) {
  if (caps_.sm != 90) GTEST_SKIP() << "setmaxnreg is of sm_90, this is sm_" << caps_.sm;
  for (const size_t num_tiles : {size_t{1}, size_t{2}, size_t{7}}) {
    std::vector<uint32_t> tiles(num_tiles * 256);
    std::vector<uint32_t> expected(256);
    for (size_t i = 0; i < tiles.size(); ++i) {
      tiles[i] = static_cast<uint32_t>(i * i + 3);
      expected[i % 256] += tiles[i];
    }
    const auto device = Upload(tiles);
    for (int launch = 0; launch < kNumLaunches; ++launch) {
      const auto sums = Allocate<uint32_t>(256);
      ASSERT_TRUE(
          RunBulkPipeline(device.data(), static_cast<int>(num_tiles), sums.data(), stream_.get())
              .ok());
      EXPECT_EQ(Download(sums), expected) << num_tiles;
    }
  }
}

bool SameBytes(const std::vector<uint4>& a, const std::vector<uint4>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(uint4)) == 0;
}

TEST_F(Instructions, CopyAsync) {
  for (const unsigned num_tiles : {1U, 2U, 5U}) {
    std::vector<uint4> tiles(num_tiles * 64);
    std::vector<uint32_t> word_tiles(tiles.size());
    for (unsigned i = 0; i < tiles.size(); ++i) {
      tiles[i] = {i, i * 3, i * 5, i + 7};
      word_tiles[i] = i * 9 + 1;
    }
    std::vector<uint4> expected(tiles.size());
    std::vector<uint32_t> expected_words(tiles.size());
    for (size_t i = 0; i < tiles.size(); ++i) {
      const size_t neighbor = (i % 64 + 1) % 64;
      if (neighbor % 5 == 0) continue;  // stays zero
      expected[i] = tiles[i / 64 * 64 + neighbor];
      expected_words[i] = word_tiles[i / 64 * 64 + neighbor];
    }
    const auto device = Upload(tiles);
    const auto word_device = Upload(word_tiles);
    const auto count = static_cast<int>(num_tiles);
    for (int launch = 0; launch < kNumLaunches; ++launch) {
      const auto copied = Allocate<uint4>(tiles.size());
      const auto words = Allocate<uint32_t>(tiles.size());
      ASSERT_TRUE(RunCopyAsync(device.data(), count, copied.data(), stream_.get()).ok());
      ASSERT_TRUE(RunCopyAsync(word_device.data(), count, words.data(), stream_.get()).ok());
      EXPECT_TRUE(SameBytes(Download(copied), expected)) << num_tiles;
      EXPECT_EQ(Download(words), expected_words) << num_tiles;
    }
  }
}

TEST_F(Instructions, NamedBarrier) {
  std::vector<uint32_t> expected(64);
  for (uint32_t i = 0; i < 64; ++i) expected[i] = (63 - i % 32) * 7 + i / 32;
  for (int launch = 0; launch < kNumLaunches; ++launch) {
    const auto values = Allocate<uint32_t>(64);
    ASSERT_TRUE(RunNamedBarrier(values.data(), stream_.get()).ok());
    EXPECT_EQ(Download(values), expected);
  }
}

// Bits at random, and those where roundings differ.
std::vector<float> Floats() {
  std::vector<float> values = {0.0F,
                               -0.0F,
                               1.0F,
                               65504.0F,
                               65519.0F,
                               65520.0F,
                               1e30F,
                               0x1p-14F,
                               0x1p-24F,
                               0x1p-25F,
                               0x1.8p-25F,
                               0x1p-133F,
                               std::numeric_limits<float>::denorm_min(),
                               std::numeric_limits<float>::max(),
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity(),
                               std::numeric_limits<float>::quiet_NaN()};
  testing::Random random(11);
  for (int i = 0; i < 2000; ++i) values.push_back(std::bit_cast<float>(random.Bits()));
  for (int i = 0; i < 2000; ++i) values.push_back(random.Normal());
  // Halfway between two bf16, and between two halves.
  for (uint32_t i = 0; i < 200; ++i)
    values.push_back(std::bit_cast<float>((i * 331 << 16) | 0x8000));
  for (uint32_t i = 0; i < 200; ++i) {
    values.push_back(std::bit_cast<float>(0x3C000000U + ((i * 331 << 13) | 0x1000)));
  }
  return values;
}

TEST_F(Instructions, ConvertsAsTheHost) {
  const std::vector<float> x = Floats();
  const auto y = Allocate<Converted>(x.size());
  ASSERT_TRUE(
      RunConvert(Upload(x).data(), y.data(), static_cast<int>(x.size()), stream_.get()).ok());
  const auto bits = [](float value) { return std::bit_cast<uint32_t>(value); };
  const auto results = Download(y);
  for (size_t i = 0; i < x.size(); ++i) {
    const Converted& result = results[i];
    if (std::isnan(x[i])) {
      EXPECT_EQ(result.bf16, 0x7FFF);
      EXPECT_EQ(result.half, 0x7FFF);
      EXPECT_TRUE(std::isnan(result.from_bf16) && std::isnan(result.from_half));
      continue;
    }
    const BFloat16 bf16 = ToBFloat16(x[i]);
    const Float16 half = ToFloat16(x[i]);
    EXPECT_EQ(result.bf16, bf16.bits) << x[i];
    EXPECT_EQ(result.half, half.bits) << x[i];
    EXPECT_EQ(result.bf16_pair, bf16.bits | (bf16.bits ^ 0x8000U) << 16) << x[i];
    EXPECT_EQ(result.half_pair, half.bits | (half.bits ^ 0x8000U) << 16) << x[i];
    EXPECT_EQ(bits(result.from_bf16), bits(ToFloat(bf16))) << x[i];
    EXPECT_EQ(bits(result.from_half), bits(ToFloat(half))) << x[i];
    EXPECT_EQ(bits(result.from_bf16_high), bits(-ToFloat(bf16))) << x[i];
    EXPECT_EQ(bits(result.from_half_high), bits(-ToFloat(half))) << x[i];
  }
}

// The polynomial of math_avx512.h in scalar words; ldexp rounds once, as scalef does.
float ExpOnHost(float x) {
  if (std::isnan(x)) return x;
  x = std::max(-105.0F, std::min(90.0F, x));
  const float n = std::nearbyint(x * 0x1.715476p+0F);
  float r = std::fma(-n, 0x1.62e43p-1F, x);
  r = std::fma(-n, -0x1.05c61p-29F, r);
  float poly = 1.0F / 5040.0F;
  for (const float c :
       {1.0F / 720.0F, 1.0F / 120.0F, 1.0F / 24.0F, 1.0F / 6.0F, 0.5F, 1.0F, 1.0F}) {
    poly = std::fma(poly, r, c);
  }
  return std::ldexp(poly, static_cast<int>(n));
}

TEST_F(Instructions, ExpHasTheBitsOfTheHost) {
  std::vector<float> x = Floats();
  for (int i = 0; i < 4000; ++i) x.push_back(-105.0F + static_cast<float>(i) * 0.05F);
  const auto y = Allocate<float>(x.size());
  ASSERT_TRUE(RunExp(Upload(x).data(), y.data(), static_cast<int>(x.size()), stream_.get()).ok());
  const auto results = Download(y);
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(results[i]));
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(results[i]), std::bit_cast<uint32_t>(ExpOnHost(x[i])))
        << x[i];
  }
}

TEST_F(Instructions, MemoryIsHandedOver) {
  constexpr uint32_t kCount = 70;
  std::vector<uint4> expected;
  for (uint32_t i = 1; i <= kCount; ++i) expected.push_back({i, i * 3, i * 5, i * 7});
  for (uint32_t i = 1; i <= kCount; ++i) expected.push_back({i * 11, 0, 0, 1});
  for (uint32_t i = 1; i <= kCount; ++i) expected.push_back({i, i, i, 1});
  for (int launch = 0; launch < kNumLaunches; ++launch) {
    const auto values = Upload(std::vector<uint4>(3 * kCount));
    const auto flags = Upload(std::vector<uint32_t>(2));
    const auto copied = Allocate<uint4>(expected.size());
    ASSERT_TRUE(
        RunHandOver(kCount, values.data(), flags.data(), copied.data(), stream_.get()).ok());
    EXPECT_TRUE(SameBytes(Download(copied), expected));
  }
}

}  // namespace
}  // namespace nibble::kernels::cuda
