// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/norm/rms_norm.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::AllWithin;
using ::nibble::testing::Random;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kHiddens[] = {1, 7, 8, 9, 15, 16, 17, 31, 33, 100, 288, 2048};

// Rows with NaN between them.
std::vector<float> PaddedRows(Random& random, int64_t rows, int64_t columns, int64_t stride) {
  std::vector<float> values(static_cast<size_t>(rows * stride), kNaN);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < columns; ++i) {
      values[static_cast<size_t>(row * stride + i)] = random.Normal();
    }
  }
  return values;
}

class RmsNormTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this machine has no " << ToString(GetParam());
    }
  }
  ThreadPool pool_{2};
};

TEST_P(RmsNormTest, IsTheEquation) {
  Random random(1);
  for (const int64_t hidden : kHiddens) {
    for (const bool with_delta : {false, true}) {
      const int64_t rows = 5;
      const int64_t stride = hidden + 3;
      const std::vector<float> input = PaddedRows(random, rows, hidden, stride);
      const std::vector<float> delta = PaddedRows(random, rows, hidden, stride);
      const std::vector<float> weight = random.Normals(hidden);
      std::vector<float> x = input;
      std::vector<float> y(input.size(), kNaN);
      RmsNorm({.num_rows = rows,
               .hidden = hidden,
               .x = x.data(),
               .x_stride = stride,
               .delta = with_delta ? delta.data() : nullptr,
               .delta_stride = stride,
               .weight = weight.data(),
               .epsilon = 1e-3F,
               .y = y.data(),
               .y_stride = stride},
              GetParam(), &pool_);

      std::vector<float> sums = input;
      std::vector<float> expected(input.size(), kNaN);
      for (int64_t row = 0; row < rows; ++row) {
        float* sum = sums.data() + row * stride;
        double squares = 0.0;
        for (int64_t i = 0; i < hidden; ++i) {
          if (with_delta) sum[i] += delta[static_cast<size_t>(row * stride + i)];
          squares += std::pow(static_cast<double>(sum[i]), 2.0);
        }
        const double norm = std::sqrt(squares / static_cast<double>(hidden) + 1e-3F);
        for (int64_t i = 0; i < hidden; ++i) {
          expected[static_cast<size_t>(row * stride + i)] =
              static_cast<float>(sum[i] / norm * weight[static_cast<size_t>(i)]);
        }
      }
      // The whole stride: the NaN between rows must still be there.
      EXPECT_TRUE(
          AllEqual<float>({x.data(), rows, stride, stride}, {sums.data(), rows, stride, stride}));
      // The sum of squares of n terms in 16 lanes: n / 16 + 4 roundings, halved by the root; the
      // root, the quotient and two products round once each.
      const double relative = 6e-8 * (static_cast<double>(hidden) / 32.0 + 8.0);
      EXPECT_TRUE(AllWithin<float>({y.data(), rows, stride, stride},
                                   {expected.data(), rows, stride, stride},
                                   [&](int64_t row, int64_t column) {
                                     const auto i = static_cast<size_t>(row * stride + column);
                                     return relative * std::abs(expected[i]);
                                   }))
          << "hidden " << hidden << " delta " << with_delta;
    }
  }
}

TEST_P(RmsNormTest, MayWriteOverItsInput) {
  Random random(2);
  const std::vector<float> weight = random.Normals(100);
  std::vector<float> x = random.Normals(300);
  std::vector<float> y(300);
  RmsNormArgs args{.num_rows = 3,
                   .hidden = 100,
                   .x = x.data(),
                   .x_stride = 100,
                   .weight = weight.data(),
                   .y = y.data(),
                   .y_stride = 100};
  RmsNorm(args, GetParam(), &pool_);
  args.y = x.data();
  RmsNorm(args, GetParam(), &pool_);
  EXPECT_TRUE(AllEqual<float>({x.data(), 3, 100, 100}, {y.data(), 3, 100, 100}));
}

TEST_P(RmsNormTest, Int8IsTheFloatOutputQuantized) {
  Random random(3);
  for (const int64_t hidden : kHiddens) {
    for (const bool with_floats : {false, true}) {
      const int64_t rows = 40;
      const std::vector<float> weight = random.Normals(hidden);
      std::vector<float> x = random.Normals(rows * hidden);
      std::vector<float> y(x.size());
      RmsNormArgs args{.num_rows = rows,
                       .hidden = hidden,
                       .x = x.data(),
                       .x_stride = hidden,
                       .weight = weight.data(),
                       .y = y.data(),
                       .y_stride = hidden};
      RmsNorm(args, GetParam(), &pool_);

      const int64_t stride = hidden + 5;
      const auto size = static_cast<size_t>(rows * stride);
      std::vector<int8_t> expected(size, 55);
      std::vector<int8_t> actual(size, 55);
      std::vector<float> expected_scales(rows);
      std::vector<float> actual_scales(rows);
      std::vector<int32_t> expected_sums(rows);
      std::vector<int32_t> actual_sums(rows);
      QuantizeRows(y.data(), hidden, rows, hidden,
                   {expected.data(), expected_scales.data(), expected_sums.data(), stride},
                   GetParam(), &pool_);
      args.y8 = {actual.data(), actual_scales.data(), actual_sums.data(), stride};
      if (!with_floats) args.y = nullptr;
      RmsNorm(args, GetParam(), &pool_);
      EXPECT_EQ(actual, expected) << "hidden " << hidden;
      EXPECT_EQ(actual_scales, expected_scales) << "hidden " << hidden;
      EXPECT_EQ(actual_sums, expected_sums) << "hidden " << hidden;
    }
  }
}

TEST_P(RmsNormTest, NoRowsAreFine) {
  std::vector<float> weight(8, 1.0F);
  float x = 0.0F;
  RmsNorm({.num_rows = 0,
           .hidden = 8,
           .x = &x,
           .x_stride = 8,
           .weight = weight.data(),
           .y = &x,
           .y_stride = 8},
          GetParam(), &pool_);
}

INSTANTIATE_TEST_SUITE_P(Variants, RmsNormTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx),
                         [](const auto& variant) { return std::string(ToString(variant.param)); });

TEST(RmsNormVariants, AreEqualToTheBit) {
  if (HostCpuFeatures().Best() < Isa::kAvx512Vnni) GTEST_SKIP() << "this machine has no AVX-512";
  Random random(4);
  ThreadPool pool(1);
  for (const int64_t hidden : kHiddens) {
    const std::vector<float> weight = random.Normals(hidden);
    std::vector<float> x = random.Normals(hidden * 3);
    std::vector<float> narrow(x.size());
    std::vector<float> wide(x.size());
    RmsNormArgs args{.num_rows = 3,
                     .hidden = hidden,
                     .x = x.data(),
                     .x_stride = hidden,
                     .weight = weight.data(),
                     .y = narrow.data(),
                     .y_stride = hidden};
    RmsNorm(args, Isa::kAvx2, &pool);
    args.y = wide.data();
    RmsNorm(args, Isa::kAvx512Vnni, &pool);
    EXPECT_EQ(narrow, wide) << "hidden " << hidden;
  }
}

}  // namespace
}  // namespace nibble::kernels
