// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/float16.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace nibble {
namespace {

TEST(Float16Test, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half{static_cast<uint16_t>(bits)};
    const float value = ToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToFloat16(value))));
    } else {
      ASSERT_EQ(ToFloat16(value).bits, half.bits) << bits;
    }
  }
}

TEST(Float16Test, EveryBFloat16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const BFloat16 narrow{static_cast<uint16_t>(bits)};
    const float value = ToFloat(narrow);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToBFloat16(value))));
    } else {
      ASSERT_EQ(ToBFloat16(value).bits, narrow.bits) << bits;
    }
  }
}

TEST(Float16Test, HalfwayRoundsToEven) {
  EXPECT_EQ(ToBFloat16(1.0F + 0x1p-8F).bits, ToBFloat16(1.0F).bits);
  EXPECT_EQ(ToFloat(ToBFloat16(1.0F + 3 * 0x1p-8F)), 1.0F + 0x1p-6F);
  EXPECT_EQ(ToFloat(ToFloat16(1.0F + 0x1p-11F)), 1.0F);
  EXPECT_EQ(ToFloat(ToFloat16(1.0F + 3 * 0x1p-11F)), 1.0F + 0x1p-9F);
  EXPECT_EQ(ToFloat(ToFloat16(0x1p-25F)), 0.0F);  // half of the smallest subnormal
  EXPECT_EQ(ToFloat(ToFloat16(0x1.8p-25F)), 0x1p-24F);
}

TEST(Float16Test, LargeHalvesBecomeInfinity) {
  EXPECT_EQ(ToFloat(ToFloat16(65504.0F)), 65504.0F);
  EXPECT_EQ(ToFloat(ToFloat16(65519.0F)), 65504.0F);
  EXPECT_TRUE(std::isinf(ToFloat(ToFloat16(65520.0F))));
  EXPECT_TRUE(std::isinf(ToFloat(ToFloat16(std::numeric_limits<float>::infinity()))));
}

}  // namespace
}  // namespace nibble
