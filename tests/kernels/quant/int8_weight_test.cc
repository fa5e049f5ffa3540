// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/int8_weight.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

TEST(Int8Weight, ValidateNamesWhatIsWrong) {
  const auto message = [](const Int8Weight& weight) {
    const absl::Status status = weight.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const Int8Weight good = {.n = 2, .k = 3, .codes = {1, -128, 3, 4, 5, 127}, .scales = {1, -2}};
  EXPECT_TRUE(good.Validate().ok()) << good.Validate();
  Int8Weight bad = good;
  bad.codes.pop_back();
  EXPECT_NE(message(bad).find("codes has 5 elements, its shape needs 6"), std::string::npos);
  bad = good;
  bad.scales.push_back(1.0F);
  EXPECT_NE(message(bad).find("scales has 3 elements, its shape needs 2"), std::string::npos);
  bad = good;
  bad.scales[1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(message(bad).find("scale [1] is nan"), std::string::npos);
  bad = good;
  bad.n = -1;
  EXPECT_NE(message(bad).find("n is -1"), std::string::npos);
  bad = good;
  bad.k = 0;
  EXPECT_NE(message(bad).find("k is 0"), std::string::npos);
  bad.k = std::numeric_limits<int64_t>::max();
  EXPECT_NE(message(bad).find("k is 9223372036854775807"), std::string::npos);
}

TEST(QuantizeInt8, RoundsToNearestWithTheLargestAt127) {
  ThreadPool pool(2);
  // Scale 1 in row 0: ties go to even.
  const float weights[] = {127.0F, -127.0F, 0.5F, 1.5F, -2.5F, 0.49F,  //
                           0.0F,   0.0F,    0.0F, 0.0F, 0.0F,  0.0F};
  auto quantized = QuantizeInt8(weights, 2, 6, &pool);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_TRUE(quantized->Validate().ok());
  EXPECT_EQ(quantized->codes, (std::vector<int8_t>{127, -127, 0, 2, -2, 0, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(quantized->scales, (std::vector<float>{1.0F, 0.0F}));
}

TEST(QuantizeInt8, ErrorIsAtMostHalfAStep) {
  testing::Random random(1);
  constexpr int64_t kN = 37;
  constexpr int64_t kK = 129;
  std::vector<float> weights = random.Normals(kN * kK);
  for (int64_t n = 0; n < kN; ++n) {
    const float factor = std::ldexp(1.0F, static_cast<int>(n * 6) - 120);
    for (int64_t k = 0; k < kK; ++k) weights[static_cast<size_t>(n * kK + k)] *= factor;
  }
  ThreadPool one(1);
  ThreadPool three(3);
  auto quantized = QuantizeInt8(weights.data(), kN, kK, &three);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  for (int64_t n = 0; n < kN; ++n) {
    const auto scale = static_cast<double>(quantized->scales[static_cast<size_t>(n)]);
    int largest = 0;
    for (int64_t k = 0; k < kK; ++k) {
      const auto i = static_cast<size_t>(n * kK + k);
      const int code = quantized->codes[i];
      largest = std::max(largest, std::abs(code));
      // The scale is rounded to float: 127 steps of it miss the largest weight by 2^-24 of it.
      EXPECT_LE(std::abs(code * scale - static_cast<double>(weights[i])), scale * (0.5 + 1e-5));
    }
    EXPECT_EQ(largest, 127) << n;
  }
  auto again = QuantizeInt8(weights.data(), kN, kK, &one);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->codes, quantized->codes);
  EXPECT_EQ(again->scales, quantized->scales);
}

TEST(QuantizeInt8, TinyAndHugeWeights) {
  ThreadPool pool(1);
  const float most = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  const float weights[] = {most, -most, least, -least, 100.0F * least, -60.0F * least};
  auto quantized = QuantizeInt8(weights, 3, 2, &pool);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_EQ(quantized->codes[0], 127);
  EXPECT_EQ(quantized->codes[1], -127);
  EXPECT_TRUE(std::isfinite(quantized->scales[0]));
  // denorm_min / 127 rounds to 0.
  EXPECT_EQ(quantized->scales[1], 0.0F);
  EXPECT_EQ(quantized->codes[2], 0);
  // 100 / 127 of the least number rounds to the least number.
  EXPECT_EQ(quantized->codes[4], 100);
  EXPECT_EQ(quantized->codes[5], -60);
}

TEST(QuantizeInt8, RefusesWhatIsNotFiniteAndNamesTheFirst) {
  ThreadPool pool(2);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    std::vector<float> weights(40 * 3, 1.0F);
    weights[35 * 3 + 1] = bad;
    weights[7 * 3 + 2] = bad;
    const absl::Status status = QuantizeInt8(weights.data(), 40, 3, &pool).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("weight [7, 2]"), absl::string_view::npos) << status;
  }
  EXPECT_EQ(QuantizeInt8(nullptr, -1, 3, &pool).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(QuantizeInt8(nullptr, 3, 0, &pool).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(QuantizeInt8(nullptr, 0, 3, &pool).ok());
}

}  // namespace
}  // namespace nibble::kernels
