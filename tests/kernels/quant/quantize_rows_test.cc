// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/quantize_rows.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using testing::Random;

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

struct Rows {
  std::vector<int8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> sums;
};

Rows Quantize(const std::vector<float>& x, int64_t x_stride, int64_t m, int64_t k, int64_t stride,
              Isa isa) {
  ThreadPool pool(2);
  Rows rows;
  rows.values.assign(static_cast<size_t>(m * stride + 64), 99);  // canaries
  rows.scales.assign(static_cast<size_t>(m + 1), -1.0F);
  rows.sums.assign(static_cast<size_t>(m + 1), -7);
  QuantizeRows(x.data(), x_stride, m, k,
               {rows.values.data(), rows.scales.data(), rows.sums.data(), stride}, isa, &pool);
  return rows;
}

class QuantizeRowsTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this CPU (" << HostCpuFeatures().name << ") has no " << ToString(GetParam());
    }
  }
};

TEST_P(QuantizeRowsTest, EqualsTheReferenceBitForBit) {
  Random random(21);
  for (const int64_t k : {1, 7, 8, 9, 15, 16, 17, 31, 64, 127, 1000, 4097}) {
    const int64_t m = k < 100 ? 9 : 3;
    const int64_t x_stride = k + 3;
    std::vector<float> x(static_cast<size_t>(m * x_stride), kNan);
    for (int64_t row = 0; row < m; ++row) {
      const float size = std::ldexp(1.0F, static_cast<int>(random.Int(-130, 120)));
      for (int64_t i = 0; i < k; ++i) {
        x[static_cast<size_t>(row * x_stride + i)] = random.Normal() * size;
      }
    }
    const int64_t stride = k + 5;
    const Rows expected = Quantize(x, x_stride, m, k, stride, Isa::kRef);
    const Rows actual = Quantize(x, x_stride, m, k, stride, GetParam());
    EXPECT_EQ(actual.values, expected.values) << k;
    EXPECT_EQ(actual.scales, expected.scales) << k;
    EXPECT_EQ(actual.sums, expected.sums) << k;
    EXPECT_EQ(actual.sums.back(), -7);
    for (int64_t row = 0; row < m; ++row) {
      for (int64_t i = k; i < stride; ++i) {
        EXPECT_EQ(actual.values[static_cast<size_t>(row * stride + i)], 99) << "canary";
      }
    }
  }
}

TEST_P(QuantizeRowsTest, RoundsToNearestTiesToEven) {
  // max 127 makes the scale 1.
  const std::vector<float> x = {127.0F, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, -2.5F, 2.4F, -126.6F};
  const Rows rows = Quantize(x, 9, 1, 9, 9, GetParam());
  const std::vector<int8_t> expected = {127, 0, 2, 2, 0, -2, -2, 2, -127};
  EXPECT_EQ(std::vector<int8_t>(rows.values.begin(), rows.values.begin() + 9), expected);
  EXPECT_EQ(rows.scales[0], 1.0F);
  EXPECT_EQ(rows.sums[0], 2);
}

TEST_P(QuantizeRowsTest, ErrorIsHalfAStep) {
  Random random(22);
  const std::vector<float> x = random.Normals(500, 3.0F);
  const Rows rows = Quantize(x, 500, 1, 500, 500, GetParam());
  int32_t sum = 0;
  for (size_t i = 0; i < 500; ++i) {
    // Half a step, and two roundings of 2^-24 on values up to 127 steps.
    EXPECT_NEAR(x[i], static_cast<float>(rows.values[i]) * rows.scales[0],
                rows.scales[0] * (0.5F + 127.0F * 3.0F * 0x1p-24F));
    sum += rows.values[i];
  }
  EXPECT_EQ(rows.sums[0], sum);
}

TEST_P(QuantizeRowsTest, ZerosAndTinyRowsHaveScaleZero) {
  std::vector<float> x(40, 0.0F);
  x[3] = -0.0F;
  x[20] = 1e-40F;
  const Rows rows = Quantize(x, 20, 2, 20, 20, GetParam());
  EXPECT_EQ(rows.scales[0], 0.0F);
  EXPECT_EQ(rows.scales[1], 0.0F);
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(rows.values[i], 0);
}

TEST_P(QuantizeRowsTest, WhatIsNotFiniteShowsInTheScale) {
  for (const float bad : {kNan, -kNan, kInf, -kInf}) {
    for (const size_t at : {0, 5, 18, 19}) {
      std::vector<float> x(40, 1.0F);
      x[at] = bad;
      const Rows rows = Quantize(x, 20, 2, 20, 20, GetParam());
      EXPECT_TRUE(std::isnan(rows.scales[0]));
      EXPECT_EQ(rows.sums[0], 0);
      for (size_t i = 0; i < 20; ++i) EXPECT_EQ(rows.values[i], 0);
      EXPECT_EQ(rows.scales[1], 1.0F / 127.0F);
      EXPECT_EQ(rows.sums[1], 20 * 127);
    }
  }
}

TEST_P(QuantizeRowsTest, NoRows) {
  const Rows rows = Quantize({}, 20, 0, 20, 20, GetParam());
  EXPECT_EQ(rows.scales[0], -1.0F);
}

INSTANTIATE_TEST_SUITE_P(AllIsas, QuantizeRowsTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx),
                         [](const auto& test) { return std::string(ToString(test.param)); });

}  // namespace
}  // namespace nibble::kernels
