// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/rounding.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/quantize/methods/calibration_fixture.h"

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;
using testing::Random;

const std::vector<float>& Scales(const QuantizedWeight& weight) {
  return std::visit([](const auto& w) -> const std::vector<float>& { return w.scales; }, weight);
}

TEST(Dequantize, IsScaleTimesCodeInEveryForm) {
  const kernels::Int4Weight int4 = {.n = 2,
                                    .k = 3,
                                    .group_size = 2,  // the second group has one column
                                    .codes = {0xf0, 0x07, 0x98, 0x01},
                                    .scales = {2.0F, 3.0F, -1.0F, 0.5F}};
  EXPECT_EQ(Dequantize(int4), (std::vector<float>{-16.0F, 14.0F, -3.0F, -0.0F, -1.0F, -3.5F}));
  const kernels::Int8Weight int8 = {
      .n = 2, .k = 2, .codes = {-127, 1, 2, 3}, .scales = {0.5F, 2.0F}};
  EXPECT_EQ(Dequantize(int8), (std::vector<float>{-63.5F, 0.5F, 4.0F, 6.0F}));
}

TEST(QuantizeRtnMatrix, TakesEveryScheme) {
  ThreadPool pool(2);
  Random random(1);
  const std::vector<float> w = random.Normals(int64_t{6 * 192});
  for (const WeightScheme& scheme :
       {WeightScheme{.group_size = 64}, WeightScheme{.group_size = 192},
        WeightScheme{.group_size = 3}, WeightScheme{.group_size = 64, .folded_scales = false},
        WeightScheme{.bits = 8}}) {
    auto quantized = QuantizeRtnMatrix(w.data(), 6, 192, scheme, &pool);
    ASSERT_TRUE(quantized.ok()) << quantized.status();
    EXPECT_EQ(Scales(*quantized).size(), scheme.bits == 8 ? 6U : 6U * 192 / scheme.group_size);
    if (scheme.bits == 4 && scheme.folded_scales) {
      EXPECT_TRUE(kernels::FindFoldedScales(std::get<kernels::Int4Weight>(*quantized)).ok());
    }
    // Rounding to the scales it found is what it did. (Its own products with 1 / scale and ours
    // round alike.)
    auto again = RoundToScales(w.data(), 6, 192, scheme, Scales(*quantized), &pool);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(Dequantize(*again), Dequantize(*quantized));
  }
}

TEST(QuantizeRtnMatrix, RefusesWhatDoesNotFit) {
  ThreadPool pool(2);
  std::vector<float> w(4 * 32, 1.0F);
  const auto status = [&](const WeightScheme& scheme) {
    return QuantizeRtnMatrix(w.data(), 4, 32, scheme, &pool).status();
  };
  EXPECT_TRUE(status({.group_size = 16}).ok());
  for (const WeightScheme& bad :
       {WeightScheme{.bits = 3}, WeightScheme{.group_size = 0}, WeightScheme{.group_size = -16},
        WeightScheme{.group_size = 5}, WeightScheme{.group_size = 64}}) {
    EXPECT_EQ(status(bad).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(QuantizeRtnMatrix(w.data(), -1, 32, {.group_size = 16}, &pool).ok());
  EXPECT_FALSE(QuantizeRtnMatrix(w.data(), 4, 0, {.group_size = 16}, &pool).ok());
  w[2 * 32 + 7] = std::nanf("");
  for (const int bits : {4, 8}) {
    EXPECT_THAT(std::string(status({.bits = bits, .group_size = 16}).message()),
                HasSubstr("[2, 7]"));
  }
}

TEST(RoundToScales, ClipsAtTheEndsAndTakesZeroScales) {
  ThreadPool pool(1);
  const std::vector<float> w = {100.0F, -100.0F, 0.4F, 0.6F, 5.0F, -5.0F, 1.0F, -3.0F};
  auto quantized =
      RoundToScales(w.data(), 1, 8, {.group_size = 4, .folded_scales = false}, {1.0F, 0.0F}, &pool);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_EQ(Dequantize(*quantized), (std::vector<float>{7, -8, 0, 1, 0, 0, 0, 0}));
  quantized = RoundToScales(w.data(), 1, 8, {.group_size = 4, .folded_scales = false},
                            {-1.0F, 1.0F}, &pool);
  ASSERT_TRUE(quantized.ok());
  EXPECT_EQ(Dequantize(*quantized), (std::vector<float>{8, -7, 0, 1, 5, -5, 1, -3}));
  quantized = RoundToScales(w.data(), 2, 4, {.bits = 8}, {0.5F, 0.1F}, &pool);
  ASSERT_TRUE(quantized.ok());
  EXPECT_EQ(Dequantize(*quantized)[0], 63.5F);
  for (const float bad : {std::nanf(""), -1e36F, std::numeric_limits<float>::infinity()}) {
    EXPECT_FALSE(RoundToScales(w.data(), 1, 8, {.group_size = 8}, {bad}, &pool).ok());
  }
  // 1 / scale is no number: as if the scale were 0, with the rest of the row where scales fold.
  quantized = RoundToScales(w.data(), 1, 8, {.group_size = 4}, {1e-40F, 3e-36F}, &pool);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_EQ(Dequantize(*quantized), std::vector<float>(8, 0.0F));
  EXPECT_FALSE(RoundToScales(w.data(), 1, 8, {.group_size = 4}, {1.0F}, &pool).ok());
}

// Against the definition: outputs of the layer, token by token.
TEST(OutputError, IsTheErrorOfTheOutputs) {
  ThreadPool pool(2);
  constexpr int64_t kK = 40;
  constexpr int64_t kN = 35;  // more than one piece of rows
  constexpr int64_t kTokens = 30;
  Random random(2);
  const std::vector<float> x = random.Normals(kTokens * kK);
  const std::vector<float> w = random.Normals(kN * kK);
  InputStatistics statistics;
  statistics.k = kK;
  statistics.num_tokens = kTokens;
  statistics.hessian.resize(static_cast<size_t>(kK * kK));
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < kK * kK; ++i) {
      statistics.hessian[static_cast<size_t>(i)] +=
          static_cast<double>(x[static_cast<size_t>(t * kK + i / kK)]) *
          static_cast<double>(x[static_cast<size_t>(t * kK + i % kK)]) / kTokens;
    }
  }
  auto quantized = QuantizeRtnMatrix(w.data(), kN, kK, {.group_size = 8}, &pool);
  ASSERT_TRUE(quantized.ok());
  const std::vector<float> values = Dequantize(*quantized);
  double error = 0.0;
  double signal = 0.0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t row = 0; row < kN; ++row) {
      double y = 0.0;
      double z = 0.0;
      for (int64_t i = 0; i < kK; ++i) {
        const auto xi = static_cast<double>(x[static_cast<size_t>(t * kK + i)]);
        y += xi * static_cast<double>(w[static_cast<size_t>(row * kK + i)]);
        z += xi * static_cast<double>(values[static_cast<size_t>(row * kK + i)]);
      }
      error += (y - z) * (y - z);
      signal += y * y;
    }
  }
  auto measured = OutputError(w.data(), *quantized, statistics, &pool);
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_NEAR(*measured, std::sqrt(error / signal), 1e-12);

  statistics.hessian.assign(statistics.hessian.size(), 0.0);
  EXPECT_EQ(*OutputError(w.data(), *quantized, statistics, &pool), 0.0) << "no output at all";
  statistics.hessian[1] = std::nan("");
  EXPECT_FALSE(OutputError(w.data(), *quantized, statistics, &pool).ok());
  EXPECT_FALSE(OutputError(w.data(), *quantized, IdentityInputs(kK + 1), &pool).ok());
}

}  // namespace
}  // namespace nibble::quantize
