// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/philox.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/sampling/sampler.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;

// Known answers published with the Random123 library (philox4x32, 10 rounds).
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U));
  EXPECT_THAT(
      Philox4x32({0xffffffffU, 0xffffffffU, 0xffffffffU, 0xffffffffU}, {0xffffffffU, 0xffffffffU}),
      ElementsAre(0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU));
  EXPECT_THAT(
      Philox4x32({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, {0xa4093822U, 0x299f31d0U}),
      ElementsAre(0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U));
}

TEST(UniformTest, CoversTheOpenIntervalEvenly) {
  double sum = 0.0;
  double sum_of_squares = 0.0;
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    const float u = UniformFromCounter(42, static_cast<uint64_t>(i));
    ASSERT_GT(u, 0.0F);
    ASSERT_LT(u, 1.0F);
    sum += static_cast<double>(u);
    sum_of_squares += static_cast<double>(u) * static_cast<double>(u);
  }
  // Five standard deviations of the mean: 5 * sqrt(1 / 12 / n); of the squares' mean: sqrt(4 / 45 /
  // n).
  EXPECT_NEAR(sum / kCount, 0.5, 0.0046);
  EXPECT_NEAR(sum_of_squares / kCount, 1.0 / 3.0, 0.0048);
}

TEST(UniformTest, DependsOnAllBitsOfSeedAndIndex) {
  const float base = UniformFromCounter(1, 1);
  EXPECT_EQ(base, UniformFromCounter(1, 1));
  for (int bit = 1; bit < 64; ++bit) {
    EXPECT_NE(base, UniformFromCounter(1 ^ (uint64_t{1} << bit), 1)) << bit;
    EXPECT_NE(base, UniformFromCounter(1, 1 ^ (uint64_t{1} << bit))) << bit;
  }
}

}  // namespace
}  // namespace nibble::engine
