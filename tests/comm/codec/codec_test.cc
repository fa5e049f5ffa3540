// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/codec/codec.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/aligned_buffer.h"
#include "tests/comm/codec/codec_cases.h"
#include "tests/testing/compare.h"

namespace nibble::comm {
namespace {

using ::nibble::testing::Random;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(CodecDescTest, NamesWhatIsNoCodec) {
  EXPECT_TRUE(Validate({}).ok());
  for (const CodecDesc& desc : AllCodecs()) EXPECT_TRUE(Validate(desc).ok()) << ToString(desc);
  EXPECT_THAT(std::string(Validate({.bits = 7}).message()), HasSubstr("7 bits"));
  EXPECT_THAT(std::string(Validate({.bits = 4, .group_size = 48}).message()),
              HasSubstr("groups of 48"));
  EXPECT_THAT(std::string(Validate({.bits = 4, .scale = static_cast<ScaleFormat>(5)}).message()),
              HasSubstr("scale format 5"));
}

TEST(CodecDescTest, HasAName) {
  EXPECT_EQ(ToString({.bits = 4}), "int4 g128");
  EXPECT_EQ(ToString({3, 32, ScaleFormat::kLog2Int8, true, true}), "int3 g32 log2 spikes hadamard");
  EXPECT_EQ(ToString({.bits = 16}), "bf16");
  EXPECT_EQ(ToString({}), "float32");
}

TEST(CodecDescTest, CountsItsBits) {
  // Per group: a scale of 16 or 8 bits, a zero point of 8, spikes of 2 * 16 + 2 * 8.
  EXPECT_DOUBLE_EQ(EffectiveBits({.bits = 4}), 4.0 + 24.0 / 128);
  EXPECT_DOUBLE_EQ(EffectiveBits({.bits = 5, .group_size = 32, .scale = ScaleFormat::kLog2Int8}),
                   5.0 + 16.0 / 32);
  EXPECT_DOUBLE_EQ(EffectiveBits({.bits = 2, .group_size = 32, .spikes = true}),
                   2.0 + (24.0 + 48.0) / 32);
  EXPECT_DOUBLE_EQ(EffectiveBits({.bits = 16, .spikes = true}), 16.0);
  EXPECT_DOUBLE_EQ(EffectiveBits({.rotation = true}), 32.0);
  for (const CodecDesc& desc : AllCodecs()) {
    EXPECT_EQ(EncodedBytes(desc, 0), 0);
    for (const int64_t count : {1, 3, 1000}) {
      const int64_t bytes = EncodedBytes(desc, count);
      EXPECT_EQ(bytes % 16, 0);
      const double exact = EffectiveBits(desc) * desc.group_size * static_cast<double>(count) / 8;
      EXPECT_GE(static_cast<double>(bytes), exact) << ToString(desc);
      EXPECT_LT(static_cast<double>(bytes), exact + 7 * 16) << ToString(desc);
    }
  }
}

// 32 values are 6 bits each: the low 4 in 16 bytes, the high 2 in 8 bytes, then scale and zero.
TEST(CodecLayoutTest, IsTheOneDrawn) {
  std::vector<float> x(32);
  for (int i = 0; i < 32; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i - 20);
  x[31] = 43.0F;  // -20..43: scale 1, zero point 20, codes 0..30 and 63
  const CodecDesc desc{.bits = 6, .group_size = 32};
  ASSERT_EQ(EncodedBytes(desc, 1), 16 + 16 + 16 + 16);
  AlignedBuffer<uint8_t> out(64);
  Encode(desc, {.row_size = 32, .group_size = 32}, x.data(), 0, 1, out.data(), Isa::kRef);
  std::vector<uint8_t> expected(64, 0);
  for (int i = 0; i < 32; ++i) {
    const int code = i == 31 ? 63 : i;
    expected[static_cast<size_t>(i % 16)] |= static_cast<uint8_t>((code & 15) << (4 * (i / 16)));
    expected[static_cast<size_t>(16 + i % 8)] |= static_cast<uint8_t>((code >> 4) << (2 * (i / 8)));
  }
  expected[32] = 0x80;  // 1.0 as bf16
  expected[33] = 0x3f;
  expected[48] = 20;
  EXPECT_THAT(std::vector<uint8_t>(out.data(), out.data() + 64),
              ::testing::ElementsAreArray(expected));
  // 3 bits: 2 and 1; bit j of a word is value j.
  for (int i = 0; i < 32; ++i) x[static_cast<size_t>(i)] = static_cast<float>(i % 8);
  const CodecDesc narrow{.bits = 3, .group_size = 32};
  Encode(narrow, {.row_size = 32, .group_size = 32}, x.data(), 0, 1, out.data(), Isa::kRef);
  EXPECT_THAT(std::vector<uint8_t>(out.data(), out.data() + 8),
              ElementsAre(0x00, 0x55, 0xaa, 0xff, 0x00, 0x55, 0xaa, 0xff));
  EXPECT_THAT(std::vector<uint8_t>(out.data() + 16, out.data() + 20), Each(0xf0));
}

class CodecTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this machine has no " << ToString(GetParam());
    }
  }
  std::vector<uint8_t> EncodeRow(const CodecDesc& desc, const std::vector<float>& x) const {
    const RowGroups groups{static_cast<int64_t>(x.size()), desc.group_size};
    std::vector<uint8_t> out(static_cast<size_t>(EncodedBytes(desc, groups.groups_per_row())));
    Encode(desc, groups, x.data(), 0, groups.groups_per_row(), out.data(), GetParam());
    return out;
  }
  std::vector<float> DecodeRow(const CodecDesc& desc, const std::vector<uint8_t>& in,
                               size_t row_size) const {
    const RowGroups groups{static_cast<int64_t>(row_size), desc.group_size};
    std::vector<float> x(row_size, 7.0F);
    Decode(desc, groups, in.data(), 0, groups.groups_per_row(), x.data(), GetParam());
    return x;
  }
  std::vector<float> Through(const CodecDesc& desc, const std::vector<float>& x) const {
    return DecodeRow(desc, EncodeRow(desc, x), x.size());
  }
};

TEST_P(CodecTest, ErrsByHalfAStep) {
  Random random(1);
  for (const CodecDesc& desc : AllCodecs()) {
    if (!desc.is_integer() || desc.rotation) continue;
    const auto size = static_cast<size_t>(desc.group_size);
    for (int kind = 0; kind < 6; ++kind) {
      // Log2 scales have their 8 steps an octave from 2^-16 to 2^10.
      const bool log2_scales = desc.scale == ScaleFormat::kLog2Int8;
      const float level =
          std::exp2(random.Uniform(log2_scales ? -7.0F : -90.0F, log2_scales ? 1.0F : 90.0F));
      std::vector<float> x = random.Normals(desc.group_size, level);
      for (float& v : x) {
        if (kind == 1) v += 6.0F * level;
        if (kind == 2) v = -std::abs(v);
        if (kind == 3) v = level;
      }
      if (kind == 4) x[size / 2] = 300.0F * level;
      const std::vector<float> y = Through(desc, x);
      std::vector<float> rest = x;
      if (desc.spikes) {
        const auto least = std::min_element(rest.begin(), rest.end());
        const auto greatest = std::max_element(rest.begin(), rest.end());
        *least = 0.0F;
        *greatest = 0.0F;
      }
      const float low = std::min(0.0F, *std::min_element(rest.begin(), rest.end()));
      const float high = std::max(0.0F, *std::max_element(rest.begin(), rest.end()));
      // Half a step, whose scale was rounded up: by 2^-7, or to the next eighth of an octave. The
      // part in 2^15 by which it may be short instead is at most 255 * 2^-15 of a step.
      const double up = desc.scale == ScaleFormat::kBf16 ? 1.0 + 0x1p-7 : std::exp2(0.125);
      const double step = (static_cast<double>(high) - low) / ((1 << desc.bits) - 1) * up;
      for (size_t i = 0; i < size; ++i) {
        // A spike is rounded to bf16.
        const double bound = rest[i] != x[i] ? std::abs(x[i]) * 0x1p-8 : 0.508 * step;
        ASSERT_LE(std::abs(static_cast<double>(y[i]) - x[i]), bound)
            << ToString(desc) << " kind " << kind << " value " << i << ": " << x[i];
      }
    }
  }
}

TEST_P(CodecTest, KeepsZeros) {
  Random random(2);
  for (const CodecDesc& desc : AllCodecs()) {
    if (desc.rotation) continue;
    std::vector<float> x = random.Normals(desc.group_size * 3, 5.0F);
    for (size_t i = 0; i < x.size(); i += 3) x[i] = 0.0F;
    const std::vector<float> y = Through(desc, x);
    for (size_t i = 0; i < x.size(); i += 3) ASSERT_EQ(y[i], 0.0F) << ToString(desc);
    EXPECT_THAT(Through(desc, std::vector<float>(300, 0.0F)), Each(0.0F)) << ToString(desc);
  }
}

TEST_P(CodecTest, ShowsFaultsInTheirWholeGroup) {
  Random random(3);
  for (const CodecDesc& desc : AllCodecs()) {
    if (!desc.is_integer()) continue;
    const auto size = static_cast<size_t>(desc.group_size);
    for (const float fault : {kNaN, -kNaN, INFINITY, -INFINITY}) {
      for (const size_t at : {size_t{0}, size - 1, size / 2 + 3}) {
        std::vector<float> x = random.Normals(desc.group_size * 3);
        x[size + at] = fault;
        const std::vector<uint8_t> code = EncodeRow(desc, x);
        std::vector<float> y = DecodeRow(desc, code, x.size());
        for (size_t i = 0; i < y.size(); ++i) {
          ASSERT_EQ(std::isnan(y[i]), i / size == 1) << ToString(desc) << " value " << i;
        }
        // Through a reduction too.
        std::vector<uint8_t> sum(code.size());
        const uint8_t* const pieces[] = {code.data(), code.data()};
        ReduceEncoded(desc, pieces, 2, 3, sum.data(), GetParam());
        y = DecodeRow(desc, sum, x.size());
        for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(std::isnan(y[i]), i / size == 1);
      }
    }
  }
}

TEST_P(CodecTest, MakesNoFaults) {
  Random random(4);
  for (const CodecDesc& desc : AllCodecs()) {
    std::vector<float> x = HardValues(&random, 3000, false);
    // bf16 rounds what is above its greatest value to infinity, as everybody's does.
    if (!desc.is_integer()) {
      for (float& v : x) v = std::clamp(v, -1e38F, 1e38F);
    }
    const std::vector<float> y = Through(desc, x);
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_TRUE(std::isfinite(y[i])) << ToString(desc) << " " << x[i];
  }
}

TEST_P(CodecTest, CodesItsOwnCodesAsThemselves) {
  Random random(5);
  for (const CodecDesc& desc : AllCodecs()) {
    if (desc.rotation || desc.spikes) continue;
    // Whole multiples of a scale that the codec has, the least and the greatest code among them.
    std::vector<float> x(static_cast<size_t>(desc.group_size * 4));
    for (size_t i = 0; i < x.size(); ++i) {
      const auto group = static_cast<int>(i) / desc.group_size;
      const int64_t levels = desc.is_integer() ? (1 << desc.bits) - 1 : 100;
      const int64_t zero = levels * group / 3;
      const auto at = static_cast<int64_t>(i) % desc.group_size;
      const int64_t q = at == 0 ? 0 : at == 5 ? levels : random.Int(0, levels);
      const float scale = desc.scale == ScaleFormat::kBf16 ? 0x1.3p-3F : 0x1.6a09e6p-3F;
      x[i] = static_cast<float>(q - zero) * (desc.is_integer() ? scale : 0x1p-3F);
    }
    const std::vector<float> y = Through(desc, x);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], x[i]) << ToString(desc) << " " << i;
    EXPECT_EQ(EncodeRow(desc, y), EncodeRow(desc, x));
  }
}

TEST_P(CodecTest, PutsSpikesAside) {
  Random random(6);
  for (const int bits : {2, 4, 8}) {
    const CodecDesc desc{.bits = bits, .group_size = 64, .spikes = true};
    std::vector<float> x(64);
    for (float& v : x) v = random.Uniform(-1.0F, 1.0F);
    x[17] = 1000.0F;
    x[63] = -2000.0F;
    std::vector<float> y = Through(desc, x);
    EXPECT_EQ(y[17], 1000.0F);
    EXPECT_EQ(y[63], -2000.0F);
    x[17] = y[17] = x[63] = y[63] = 0.0F;
    for (size_t i = 0; i < 64; ++i) EXPECT_NEAR(y[i], x[i], 1.02 / ((1 << bits) - 1));
  }
}

TEST_P(CodecTest, RoundsBf16ToEven) {
  const std::vector<float> x = {1.0F,  0x1.01p0F, 0x1.03p0F, 0x1.010002p0F, -0x1.01p0F,
                                -0.0F, 1e-45F,    3.4e38F,   INFINITY,      -INFINITY};
  std::vector<float> y = Through({.bits = 16}, x);
  const std::vector<float> expected = {1.0F,  1.0F, 0x1.04p0F, 0x1.02p0F, -1.0F,
                                       -0.0F, 0.0F, INFINITY,  INFINITY,  -INFINITY};
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], expected[i]) << x[i];
  y = Through({.bits = 16}, {__builtin_bit_cast(float, 0x7f800001U), 1.0F});
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_EQ(y[1], 1.0F);
}

// A group's bytes are those it has alone, wherever it stands and whatever stands beside it.
TEST_P(CodecTest, CodesEachGroupAlone) {
  Random random(7);
  for (const CodecDesc& desc : AllCodecs()) {
    for (const int64_t row_size : {200, 256}) {
      const RowGroups groups{row_size, desc.group_size};
      const int64_t count = groups.groups_per_row() * 3;
      const std::vector<float> x = HardValues(&random, row_size * 3, true);
      std::vector<float> whole(x.size(), 1.0F);
      std::vector<uint8_t> all(static_cast<size_t>(EncodedBytes(desc, count)));
      Encode(desc, groups, x.data(), 0, count, all.data(), GetParam());
      Decode(desc, groups, all.data(), 0, count, whole.data(), GetParam());
      std::vector<float> split(x.size(), 1.0F);
      for (int64_t first = 0; first < count;) {
        const int64_t part = std::min(count - first, random.Int(1, 3));
        std::vector<uint8_t> code(static_cast<size_t>(EncodedBytes(desc, part)), 0xee);
        Encode(desc, groups, x.data(), first, part, code.data(), GetParam());
        Decode(desc, groups, code.data(), first, part, split.data(), GetParam());
        first += part;
      }
      ASSERT_EQ(std::memcmp(whole.data(), split.data(), whole.size() * sizeof(float)), 0)
          << ToString(desc) << " rows of " << row_size;
    }
  }
}

TEST_P(CodecTest, EndsShortGroupsWithZeros) {
  Random random(8);
  for (const CodecDesc& desc : AllCodecs()) {
    for (const size_t row_size : {size_t{1}, size_t{31}, size_t{200}, size_t{300}}) {
      std::vector<float> x = HardValues(&random, static_cast<int64_t>(row_size), false);
      const std::vector<uint8_t> code = EncodeRow(desc, x);
      const auto size = static_cast<size_t>(desc.group_size);
      x.resize((row_size + size - 1) / size * size, 0.0F);
      ASSERT_EQ(code, EncodeRow(desc, x)) << ToString(desc) << " rows of " << row_size;
    }
  }
}

TEST_P(CodecTest, WritesEveryByte) {
  Random random(9);
  for (const CodecDesc& desc : AllCodecs()) {
    const RowGroups groups{200, desc.group_size};
    const int64_t count = 3 * groups.groups_per_row();
    const std::vector<float> x = HardValues(&random, 600, true);
    const auto bytes = static_cast<size_t>(EncodedBytes(desc, count));
    std::vector<uint8_t> code(bytes, 0x00);
    std::vector<uint8_t> again(bytes, 0xff);
    Encode(desc, groups, x.data(), 0, count, code.data(), GetParam());
    Encode(desc, groups, x.data(), 0, count, again.data(), GetParam());
    ASSERT_EQ(code, again) << ToString(desc);
    const uint8_t* const pieces[] = {code.data(), again.data()};
    std::vector<uint8_t> sum(bytes, 0x00);
    std::vector<uint8_t> sum_again(bytes, 0xff);
    ReduceEncoded(desc, pieces, 2, count, sum.data(), GetParam());
    ReduceEncoded(desc, pieces, 2, count, sum_again.data(), GetParam());
    ASSERT_EQ(sum, sum_again) << ToString(desc);
  }
}

TEST_P(CodecTest, DoesNothingWithoutGroups) {
  float x = 3.0F;
  uint8_t byte = 9;
  const uint8_t* piece = &byte;
  for (const CodecDesc& desc : AllCodecs()) {
    const RowGroups groups{1, desc.group_size};
    Encode(desc, groups, &x, 0, 0, &byte, GetParam());
    Decode(desc, groups, &byte, 0, 0, &x, GetParam());
    ReduceEncoded(desc, &piece, 1, 0, &byte, GetParam());
    EXPECT_EQ(x, 3.0F);
    EXPECT_EQ(byte, 9);
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas, CodecTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni),
                         [](const auto& param) { return std::string(ToString(param.param)); });

}  // namespace
}  // namespace nibble::comm
