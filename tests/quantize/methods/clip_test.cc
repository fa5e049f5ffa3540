// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/clip.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "quantize/methods/rounding.h"
#include "tests/quantize/methods/calibration_fixture.h"

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;
using testing::Random;

// Inputs that are uncorrelated, of very different size.
InputStatistics DiagonalInputs(int64_t k, Random* random) {
  InputStatistics statistics = IdentityInputs(k);
  for (int64_t i = 0; i < k; ++i) {
    statistics.hessian[static_cast<size_t>(i * (k + 1))] =
        std::exp2(static_cast<double>(random->Uniform(-8.0F, 4.0F)));
  }
  return statistics;
}

TEST(SearchClipping, CostsLessAtTheOutputThanTheSearchThatKnowsNoInputs) {
  ThreadPool pool(2);
  Random random(41);
  const InputStatistics statistics = DiagonalInputs(256, &random);
  const Matrix matrix = RandomMatrix(40, 256, &random);
  for (const WeightScheme& scheme :
       {WeightScheme{}, WeightScheme{.group_size = 32}, WeightScheme{.group_size = 256},
        WeightScheme{.folded_scales = false}, WeightScheme{.bits = 8}}) {
    auto clip = SearchClipping(matrix, statistics, scheme, &pool);
    ASSERT_TRUE(clip.ok()) << clip.status();
    const float* w = matrix.weight.data();
    auto clipped = RoundToScales(w, 40, 256, scheme, clip->scales, &pool);
    auto rtn = QuantizeRtnMatrix(w, 40, 256, scheme, &pool);
    ASSERT_TRUE(clipped.ok() && rtn.ok()) << clipped.status();
    EXPECT_LT(*OutputError(w, *clipped, statistics, &pool),
              *OutputError(w, *rtn, statistics, &pool));
    if (scheme.bits == 4 && scheme.folded_scales) {
      EXPECT_TRUE(kernels::FindFoldedScales(std::get<kernels::Int4Weight>(*clipped), 0.0F).ok());
    }
  }
}

// A weight that no input reaches does not hold up the scale of the others.
TEST(SearchClipping, GivesUpAnOutlierThatDoesNotMatter) {
  ThreadPool pool(1);
  Random random(42);
  InputStatistics statistics = IdentityInputs(64);
  statistics.hessian[5 * 65] = 0.0;
  Matrix matrix = RandomMatrix(1, 64, &random);
  matrix.weight[5] = 0.3F;  // twice the largest of the others
  auto clip = SearchClipping(matrix, statistics, {.group_size = 64}, &pool);
  ASSERT_TRUE(clip.ok()) << clip.status();
  EXPECT_LT(8.0F * std::abs(clip->scales[0]), 0.8F * 0.3F);
  statistics.hessian[5 * 65] = 1e4;
  clip = SearchClipping(matrix, statistics, {.group_size = 64}, &pool);
  ASSERT_TRUE(clip.ok());
  EXPECT_GT(8.0F * std::abs(clip->scales[0]), 0.9F * 0.3F);
}

TEST(SearchClipping, DoesNotDependOnThreadsAndTakesZeros) {
  Random random(43);
  const InputStatistics statistics = CorrelatedInputs(64, 100, &random, {1});
  Matrix matrix = RandomMatrix(9, 64, &random);
  std::fill_n(matrix.weight.begin() + 64, 64, 0.0F);        // a row
  std::fill_n(matrix.weight.begin() + 3 * 64, 32, 0.0F);    // a group
  std::fill_n(matrix.weight.begin() + 4 * 64, 64, 1e-38F);  // too small to scale
  ThreadPool one(1);
  ThreadPool three(3);
  for (const bool folded : {true, false}) {
    const WeightScheme scheme = {.group_size = 32, .folded_scales = folded};
    auto a = SearchClipping(matrix, statistics, scheme, &one);
    auto b = SearchClipping(matrix, statistics, scheme, &three);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->scales, b->scales);
    auto rounded = RoundToScales(matrix.weight.data(), 9, 64, scheme, a->scales, &one);
    ASSERT_TRUE(rounded.ok()) << rounded.status();
    if (folded) {
      EXPECT_TRUE(kernels::FindFoldedScales(std::get<kernels::Int4Weight>(*rounded), 0.0F).ok());
    }
  }
}

TEST(SearchClipping, RefusesWhatDoesNotFitByName) {
  ThreadPool pool(1);
  Random random(44);
  const InputStatistics statistics = IdentityInputs(32);
  Matrix matrix = RandomMatrix(2, 32, &random);
  const auto message = [&](const Matrix& m, const InputStatistics& s, const WeightScheme& scheme) {
    const absl::Status status = SearchClipping(m, s, scheme, &pool).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(matrix, statistics, {.group_size = 24}), HasSubstr("layer.proj"));
  EXPECT_THAT(message(matrix, IdentityInputs(16), {.group_size = 32}), HasSubstr("layer.proj"));
  matrix.weight[33] = std::nanf("");
  EXPECT_THAT(message(matrix, statistics, {.group_size = 32}), HasSubstr("[1, 1]"));
  matrix.weight.clear();
  EXPECT_THAT(message(matrix, statistics, {.group_size = 32}), HasSubstr("layer.proj"));
}

}  // namespace
}  // namespace nibble::quantize
