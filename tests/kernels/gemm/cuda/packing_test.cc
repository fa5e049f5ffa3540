// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The layout as README.md draws it, read back lane by lane.

#include "kernels/gemm/cuda/packing.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/thread_pool.h"
#include "kernels/gemm/integer_scales.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

uint32_t WordAt(const std::vector<uint8_t>& bytes, int64_t offset) {
  uint32_t word = 0;
  std::memcpy(&word, bytes.data() + offset, sizeof(word));
  return word;
}

Int4Weight RandomInt4(testing::Random* random, int64_t n, int64_t k, int64_t group, bool zeros) {
  Int4Weight weight{
      .n = n, .k = k, .group_size = group, .codes = {}, .scales = {}, .zero_points = {}};
  for (int64_t i = 0; i < n * weight.row_bytes(); ++i) {
    weight.codes.push_back(static_cast<uint8_t>(random->Int(0, 255)));
  }
  for (int64_t i = 0; i < n * weight.num_groups(); ++i) {
    weight.scales.push_back(random->Uniform(-1.0F, 1.0F));
    if (zeros) weight.zero_points.push_back(static_cast<uint8_t>(random->Int(0, 15)));
  }
  return weight;
}

TEST(PackingTest, WordsOfALaneAreTheOperandsOfTheMatrixInstruction) {
  testing::Random random(5);
  ThreadPool pool(2);
  const Int4Weight weight = RandomInt4(&random, 70, 200, 40 * 5, true);
  const HostWeight packed = PackInt4Host(weight, ScaleForm::kFloat, &pool).value();
  ASSERT_EQ(packed.layout.padded_n, 128);
  ASSERT_EQ(packed.layout.padded_k, 256);
  ASSERT_EQ(packed.codes.size(), 128U * 256 / 2);
  for (int64_t unit_n = 0; unit_n < 8; ++unit_n) {
    for (int64_t unit_k = 0; unit_k < 4; ++unit_k) {
      for (int64_t lane = 0; lane < 32; ++lane) {
        for (int64_t word = 0; word < 4; ++word) {
          const uint32_t codes =
              WordAt(packed.codes, ((unit_n * 4 + unit_k) * 32 + lane) * 16 + word * 4);
          for (int64_t nibble = 0; nibble < 8; ++nibble) {
            // The drawing, not Int4Position().
            const int64_t row = unit_n * 16 + lane / 4 + word % 2 * 8;
            const int64_t k =
                unit_k * 64 + word / 2 * 32 + nibble % 2 * 16 + lane % 4 * 4 + nibble / 2;
            const int code = static_cast<int>(codes >> (4 * nibble) & 15);
            const bool inside = row < weight.n && k < weight.k;
            const int zero = row < weight.n ? weight.Zero(row, 0) : 8;
            ASSERT_EQ(code, inside ? weight.Code(row, k) : zero) << row << ", " << k;
          }
        }
      }
    }
  }
}

TEST(PackingTest, Int8WordsAreTheOperandsOfTheMatrixInstruction) {
  testing::Random random(6);
  ThreadPool pool(2);
  Int8Weight weight{.n = 21, .k = 77, .codes = {}, .scales = {}};
  for (int64_t i = 0; i < weight.n * weight.k; ++i) {
    weight.codes.push_back(static_cast<int8_t>(random.Int(-128, 127)));
  }
  for (int64_t i = 0; i < weight.n; ++i) weight.scales.push_back(static_cast<float>(i));
  const HostWeight packed = PackInt8Host(weight, &pool).value();
  ASSERT_EQ(packed.codes.size(), 64U * 128);
  for (int64_t i = 0; i < 64 * 128; ++i) {
    const int64_t lane = i / 16 % 32;
    const int64_t word = i / 4 % 4;
    const int64_t unit = i / 512;
    const int64_t row = unit / 4 * 16 + lane / 4 + word % 2 * 8;
    const int64_t k = unit % 4 * 32 + word / 2 * 16 + lane % 4 * 4 + i % 4;
    const int code = static_cast<int8_t>(packed.codes[static_cast<size_t>(i)]);
    const bool inside = row < weight.n && k < weight.k;
    ASSERT_EQ(code, inside ? weight.codes[static_cast<size_t>(row * weight.k + k)] : 0);
  }
  float last = 0.0F;
  std::memcpy(&last, packed.scales.data() + 20 * 4, 4);
  EXPECT_EQ(last, 20.0F);
}

TEST(PackingTest, PositionsOfCodesAreAllDifferent) {
  const WeightLayout layout =
      MakeWeightLayout({.format = WeightFormat::kW4A8, .n = 128, .k = 384, .group_size = 128});
  std::set<int64_t> seen;
  for (int64_t n = 0; n < 128; ++n) {
    for (int64_t k = 0; k < 384; ++k) {
      const CodePosition at = Int4Position(layout, n, k);
      seen.insert(at.byte * 2 + at.shift / 4);
    }
  }
  EXPECT_EQ(seen.size(), 128U * 384);
  EXPECT_EQ(*seen.rbegin(), 128 * 384 - 1);
}

// Groups that are no power of two are stored as several; every k finds the scale it had.
TEST(PackingTest, StoredGroupsHaveTheScalesOfTheirs) {
  testing::Random random(7);
  ThreadPool pool(1);
  for (const int64_t group : {32, 64, 96, 128, 160, 192, 256, 500}) {
    const Int4Weight weight = RandomInt4(&random, 35, 500, group, true);
    const IntegerScales scales = FindIntegerScales(weight).value();
    const HostWeight packed = PackInt4Host(weight, ScaleForm::kInteger, &pool).value();
    const WeightLayout& layout = packed.layout;
    ASSERT_EQ(layout.num_groups, (512 + (1 << layout.group_shift) - 1) >> layout.group_shift);
    for (int64_t n = 0; n < weight.n; ++n) {
      const auto offset = static_cast<int32_t>(
          WordAt(packed.scales, layout.integer_offset + n * int64_t{sizeof(int32_t)}));
      for (int64_t k = 0; k < weight.k; ++k) {
        const int64_t index = ScaleIndex(layout, n, k >> layout.group_shift);
        const int scale = packed.scales[static_cast<size_t>(index)] + offset;
        ASSERT_EQ(scale, scales.integers[static_cast<size_t>(n * weight.num_groups() + k / group)])
            << "group " << group << " of channel " << n << ", k " << k;
        ASSERT_EQ(packed.scales[static_cast<size_t>(layout.zeros_offset + index)],
                  weight.Zero(n, k));
      }
    }
  }
}

TEST(PackingTest, DenseIsRowMajorWithZerosAround) {
  ThreadPool pool(1);
  const std::vector<float> weights = {1, 2, 3, 4, 5, 6};
  const HostWeight packed =
      PackDenseHost(weights.data(), DType::kF32, 2, 3, DType::kF32, &pool).value();
  ASSERT_EQ(packed.layout.padded_k, 32);
  ASSERT_EQ(packed.codes.size(), 64U * 32 * 4);
  std::vector<float> values(64 * 32);
  std::memcpy(values.data(), packed.codes.data(), packed.codes.size());
  EXPECT_EQ(values[33], 5.0F);
  EXPECT_EQ(std::count(values.begin(), values.end(), 0.0F), 64 * 32 - 6);
  EXPECT_TRUE(packed.scales.empty());
}

TEST(PackingTest, RefusesWhatTheLayoutCannotHold) {
  testing::Random random(8);
  ThreadPool pool(1);
  const auto message = [&](int64_t k, int64_t group, ScaleForm form) {
    return std::string(
        PackInt4Host(RandomInt4(&random, 2, k, group, false), form, &pool).status().message());
  };
  EXPECT_THAT(message(256, 48, ScaleForm::kFloat),
              ::testing::HasSubstr("group_size is 48; CUDA kernels take multiples of 32"));
  EXPECT_EQ(message(100, 100, ScaleForm::kFloat), "");
  EXPECT_EQ(message(100, 4096, ScaleForm::kInteger), "");
  EXPECT_THAT(message(256, 32, ScaleForm::kFolded), ::testing::HasSubstr("output channel 0"));
  const GemmDesc too_long = {.format = WeightFormat::kW8A8, .n = 1, .k = 132105};
  EXPECT_THAT(std::string(CheckLayout(too_long).message()), ::testing::HasSubstr("132104"));
  const GemmDesc w4a16 = {.format = WeightFormat::kW4A16, .n = 64, .k = 128};
  EXPECT_THAT(std::string(CheckLayout(w4a16).message()), ::testing::HasSubstr("no CUDA kernel"));
}

// reference: 4.0625 bits per weight with groups of 128.
TEST(PackingTest, BytesOfALlama8bGateUp) {
  GemmDesc desc = {.format = WeightFormat::kW4A8, .n = 28672, .k = 4096, .group_size = 128};
  const WeightLayout layout = MakeWeightLayout(desc);
  EXPECT_EQ(layout.codes_bytes, int64_t{28672} * 4096 / 2);
  EXPECT_EQ(layout.scales_bytes, int64_t{28672} * (4096 / 128 + 4));
  desc.scale_form = ScaleForm::kInteger;
  EXPECT_EQ(MakeWeightLayout(desc).scales_bytes, int64_t{28672} * (4096 / 128 + 8));
}

}  // namespace
}  // namespace nibble::kernels::cuda
