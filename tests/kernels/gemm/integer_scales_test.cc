// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/integer_scales.h"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "gtest/gtest.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

Int4Weight Uniform(int64_t k, int64_t group, int code, const std::vector<float>& scales) {
  Int4Weight weight;
  weight.n = 1;
  weight.k = k;
  weight.group_size = group;
  weight.codes.assign(static_cast<size_t>(weight.row_bytes()), static_cast<uint8_t>(code * 17));
  weight.scales = scales;
  weight.scales.resize(static_cast<size_t>(weight.num_groups()), scales.back());
  return weight;
}

TEST(IntegerScales, LargestScaleBecomes255OrItsSignedTwin) {
  auto positive = FindIntegerScales(Uniform(384, 128, 3, {0.5F, 1.0F, 0.25F}));
  ASSERT_TRUE(positive.ok()) << positive.status();
  EXPECT_EQ(positive->integers, (std::vector<int16_t>{128, 255, 64}));
  EXPECT_FLOAT_EQ(positive->channel[0], 1.0F / 255.0F);

  // All negative: the channel scale carries the sign.
  auto negative = FindIntegerScales(Uniform(256, 128, 3, {-0.5F, -1.0F}));
  ASSERT_TRUE(negative.ok()) << negative.status();
  EXPECT_EQ(negative->integers, (std::vector<int16_t>{128, 255}));
  EXPECT_FLOAT_EQ(negative->channel[0], -1.0F / 255.0F);

  auto mixed = FindIntegerScales(Uniform(256, 128, 3, {0.5F, -1.0F}));
  ASSERT_TRUE(mixed.ok()) << mixed.status();
  EXPECT_EQ(std::abs(mixed->integers[1]), 127);
  EXPECT_LT(mixed->integers[0] * mixed->integers[1], 0);
  for (int g = 0; g < 2; ++g) {
    EXPECT_NEAR(mixed->integers[static_cast<size_t>(g)] * mixed->channel[0], g == 0 ? 0.5F : -1.0F,
                0.5F / 127.0F);
  }
}

TEST(IntegerScales, ZeroScalesAreZero) {
  auto scales = FindIntegerScales(Uniform(256, 128, 3, {0.0F, 0.0F}));
  ASSERT_TRUE(scales.ok()) << scales.status();
  EXPECT_EQ(scales->integers, (std::vector<int16_t>{0, 0}));
  EXPECT_EQ(scales->channel[0], 0.0F);
}

TEST(IntegerScales, TinyAndHugeScalesStayFinite) {
  for (const float scale : {1e-45F, 1e-38F, 3e38F}) {
    auto scales = FindIntegerScales(Uniform(256, 128, 3, {scale, scale}));
    ASSERT_TRUE(scales.ok()) << scales.status();
    EXPECT_EQ(scales->integers[0], 255);
    EXPECT_TRUE(std::isfinite(scales->channel[0]));
  }
}

// 127 * S * 8 * k for code 0 passes 2^31 at k = 8289 with S = 255: from there the amplifier falls,
// just as far as it must.
TEST(IntegerScales, AmplifierFallsUntilSumsFit) {
  for (const int64_t k : {8288, 8290, 16640, 131072, 1048576}) {
    const Int4Weight weight = Uniform(k, k, 0, {1.0F});
    auto scales = FindIntegerScales(weight);
    ASSERT_TRUE(scales.ok()) << scales.status();
    const int64_t integer = scales->integers[0];
    EXPECT_LE(127 * integer * 8 * k, kInt32Max) << k;
    EXPECT_EQ(LargestSum(weight, 0, scales->integers.data()), 127 * integer * 8 * k);
    EXPECT_EQ(integer, std::min<int64_t>(255, kInt32Max / (127 * 8 * k))) << k;
    EXPECT_FLOAT_EQ(scales->channel[0], 1.0F / static_cast<float>(integer));
  }
}

TEST(IntegerScales, RefusesWhatCannotFit) {
  // 127 * 1 * 15 * k > 2^31 - 1 from k = 1127289.
  Int4Weight weight = Uniform(1127289, 2097152, 15, {1.0F});
  weight.zero_points.assign(1, 0);
  const absl::Status status = FindIntegerScales(weight).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("output channel 0"), absl::string_view::npos) << status;
  weight = Uniform(1127288, 2097152, 15, {1.0F});
  weight.zero_points.assign(1, 0);
  EXPECT_TRUE(FindIntegerScales(weight).ok());
}

}  // namespace
}  // namespace nibble::kernels
