// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/activation/silu_mul.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::AllWithin;
using ::nibble::testing::Random;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class SiluMulTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this machine has no " << ToString(GetParam());
    }
  }
  ThreadPool pool_{2};
};

TEST_P(SiluMulTest, IsTheEquation) {
  Random random(1);
  for (const int64_t width : {1, 5, 8, 15, 16, 17, 31, 768, 20000}) {
    const int64_t rows = 3;
    const int64_t in_stride = 2 * width + 3;
    const int64_t out_stride = width + 2;
    std::vector<float> in(static_cast<size_t>(rows * in_stride), kNaN);
    std::vector<float> expected(static_cast<size_t>(rows * out_stride), kNaN);
    std::vector<float> y(expected);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < width; ++i) {
        const float gate = random.Normal() * 8.0F;
        const float up = random.Normal();
        in[static_cast<size_t>(row * in_stride + i)] = gate;
        in[static_cast<size_t>(row * in_stride + width + i)] = up;
        const double g = static_cast<double>(gate);
        expected[static_cast<size_t>(row * out_stride + i)] =
            static_cast<float>(g / (1.0 + std::exp(-g)) * static_cast<double>(up));
      }
    }
    SiluMul({.num_rows = rows,
             .intermediate = width,
             .gate_up = in.data(),
             .gate_up_stride = in_stride,
             .y = y.data(),
             .y_stride = out_stride},
            GetParam(), &pool_);
    // exp, the sum, the quotient and the product: one or two roundings of 6e-8 each. The whole
    // stride: the NaN between rows must still be there.
    EXPECT_TRUE(AllWithin<float>({y.data(), rows, out_stride, out_stride},
                                 {expected.data(), rows, out_stride, out_stride},
                                 [&](int64_t row, int64_t column) {
                                   const auto i = static_cast<size_t>(row * out_stride + column);
                                   return 4e-7 * std::abs(static_cast<double>(expected[i]));
                                 }))
        << "width " << width;
  }
}

// exp over its whole range, through gates whose silu shows it.
TEST_P(SiluMulTest, GatesOfAllMagnitudes) {
  std::vector<float> gates = {0.0F, -0.0F, 1e-30F, -1e-30F, kInfinity, 3e38F, -3e38F, -1e-42F};
  for (float gate = -110.0F; gate < 110.0F; gate += 0.37F) gates.push_back(gate);
  const auto count = static_cast<int64_t>(gates.size());
  std::vector<float> in = gates;
  in.insert(in.end(), gates.size(), 1.0F);
  std::vector<float> y(gates.size());
  SiluMul({.num_rows = 1,
           .intermediate = count,
           .gate_up = in.data(),
           .gate_up_stride = 2 * count,
           .y = y.data(),
           .y_stride = count},
          GetParam(), &pool_);
  for (size_t i = 0; i < gates.size(); ++i) {
    const double g = static_cast<double>(gates[i]);
    const double expected = g / (1.0 + std::exp(-g));
    // Where exp(-g) overflows float (g < -88.7) the result is -0 instead of at most 3e-37.
    if (gates[i] == kInfinity) {
      EXPECT_EQ(y[i], kInfinity);
    } else {
      EXPECT_NEAR(y[i], expected, 4e-7 * std::abs(expected) + 1e-36) << "gate " << g;
    }
  }
}

TEST_P(SiluMulTest, NaNShows) {
  const std::vector<float> in = {kNaN, 1.0F, 1.0F, 1.0F, kNaN, 1.0F};
  std::vector<float> y(3);
  SiluMul({.num_rows = 1,
           .intermediate = 3,
           .gate_up = in.data(),
           .gate_up_stride = 6,
           .y = y.data(),
           .y_stride = 3},
          GetParam(), &pool_);
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_TRUE(std::isnan(y[1]));
  EXPECT_NEAR(y[2], 0.7310586F, 1e-6F);
}

TEST_P(SiluMulTest, Int8IsTheFloatOutputQuantized) {
  Random random(3);
  for (const int64_t width : {1, 31, 768, 20000}) {
    for (const bool with_floats : {false, true}) {
      const int64_t rows = 50;
      const std::vector<float> in = random.Normals(rows * 2 * width);
      std::vector<float> y(static_cast<size_t>(rows * width));
      SiluMulArgs args{.num_rows = rows,
                       .intermediate = width,
                       .gate_up = in.data(),
                       .gate_up_stride = 2 * width,
                       .y = y.data(),
                       .y_stride = width};
      SiluMul(args, GetParam(), &pool_);

      const int64_t stride = width + 5;
      const auto size = static_cast<size_t>(rows * stride);
      std::vector<int8_t> expected(size, 55);
      std::vector<int8_t> actual(size, 55);
      std::vector<float> expected_scales(rows);
      std::vector<float> actual_scales(rows);
      std::vector<int32_t> expected_sums(rows);
      std::vector<int32_t> actual_sums(rows);
      QuantizeRows(y.data(), width, rows, width,
                   {expected.data(), expected_scales.data(), expected_sums.data(), stride},
                   GetParam(), &pool_);
      args.y8 = {actual.data(), actual_scales.data(), actual_sums.data(), stride};
      if (!with_floats) args.y = nullptr;
      SiluMul(args, GetParam(), &pool_);
      EXPECT_EQ(actual, expected) << "width " << width;
      EXPECT_EQ(actual_scales, expected_scales) << "width " << width;
      EXPECT_EQ(actual_sums, expected_sums) << "width " << width;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, SiluMulTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx),
                         [](const auto& variant) { return std::string(ToString(variant.param)); });

TEST(SiluMulVariants, AreEqualToTheBit) {
  if (HostCpuFeatures().Best() < Isa::kAvx512Vnni) GTEST_SKIP() << "this machine has no AVX-512";
  Random random(4);
  ThreadPool pool(1);
  const std::vector<float> in = random.Normals(2 * 5001, 20.0F);
  std::vector<float> narrow(5001);
  std::vector<float> wide(5001);
  SiluMulArgs args{.num_rows = 1,
                   .intermediate = 5001,
                   .gate_up = in.data(),
                   .gate_up_stride = 2 * 5001,
                   .y = narrow.data(),
                   .y_stride = 5001};
  SiluMul(args, Isa::kAvx2, &pool);
  args.y = wide.data();
  SiluMul(args, Isa::kAvx512Vnni, &pool);
  EXPECT_EQ(narrow, wide);
}

}  // namespace
}  // namespace nibble::kernels
