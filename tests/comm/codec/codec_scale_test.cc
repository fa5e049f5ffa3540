// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/codec/codec_scale.h"

#include <cmath>

#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::comm {
namespace {

TEST(CodecScaleTest, Log2CodesRiseAndFindThemselves) {
  EXPECT_TRUE(std::isnan(kLog2Scales.of_code[0]));
  EXPECT_TRUE(std::isnan(kLog2Scales.of_code[254]));
  EXPECT_TRUE(std::isnan(kLog2Scales.of_code[255]));
  for (int code = 1; code <= 253; ++code) {
    const float scale = kLog2Scales.of_code[code];
    if (code > 1) {
      EXPECT_GT(scale, kLog2Scales.of_code[code - 1]);
    }
    EXPECT_EQ(Log2Code(scale), code) << scale;
    // A hair more, as rounding leaves it, is the same; twice the slack is the next.
    EXPECT_EQ(Log2Code(scale * (1.0F + 0x1p-17F)), code) << scale;
    if (code < 253) {
      EXPECT_EQ(Log2Code(scale * (1.0F + 0x1p-13F)), code + 1) << scale;
    }
  }
  for (int eighths = -128; eighths <= 80; ++eighths) {
    EXPECT_NEAR(kLog2Scales.of_code[143 + eighths] / std::exp2(eighths / 8.0), 1.0, 1e-7);
  }
}

TEST(CodecScaleTest, IsTheRangeRoundedUp) {
  testing::Random random(1);
  for (int i = 0; i < 2000; ++i) {
    const int bits = static_cast<int>(random.Int(2, 8));
    const float level = std::exp2(random.Uniform(-120.0F, 126.0F));
    const float low = -level * random.Uniform(0.0F, 1.0F);
    const float high = level * random.Uniform(0.0F, 1.0F);
    for (const bool log2_scales : {false, true}) {
      const GroupScale group = ScaleOf(low, high, bits, log2_scales);
      const double exact = (static_cast<double>(high) - low) / ((1 << bits) - 1);
      EXPECT_GE(group.scale, exact * (1.0 - 0x1p-14));
      if (!log2_scales) {
        EXPECT_LE(group.scale, std::max(exact * (1.0 + 0x1p-7), 0x1p-126));
      }
      EXPECT_EQ(ScaleOfCode(group.code, log2_scales), group.scale);
      EXPECT_TRUE(std::isfinite(group.inverse));
      EXPECT_NEAR(group.zero, -low / group.scale, 0.508);
    }
  }
}

TEST(CodecScaleTest, OfAPeerIsFiniteOrNan) {
  for (int code = 0; code < 65536; ++code) {
    EXPECT_FALSE(std::isinf(ScaleOfCode(static_cast<uint16_t>(code), false)));
    EXPECT_FALSE(std::isinf(ScaleOfCode(static_cast<uint16_t>(code), true)));
  }
  EXPECT_TRUE(std::isnan(ScaleOfCode(kNanBf16, false)));
  EXPECT_TRUE(std::isnan(ScaleOfCode(0x7f80, false)));
  EXPECT_EQ(ScaleOfCode(0x3f80, false), 1.0F);
}

}  // namespace
}  // namespace nibble::comm
