// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/hessian_factor.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "quantize/methods/triangular.h"
#include "tests/quantize/methods/calibration_fixture.h"

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;
using testing::Random;

double Hessian(const InputStatistics& statistics, int64_t i, int64_t j) {
  return statistics.hessian[static_cast<size_t>(i * statistics.k + j)];
}

// U^T U (H + damping) = 1, in rounding order. Bound: the condition number (about 1e4 with the
// damping) times k times epsilon is below 1e-8.
void ExpectInverse(const HessianFactor& factor, const InputStatistics& statistics) {
  const int64_t k = statistics.k;
  ASSERT_EQ(factor.k(), k);
  std::vector<double> inverse(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0.0;
      for (int64_t m = 0; m < k; ++m) sum += factor.data()[m * k + i] * factor.data()[m * k + j];
      inverse[static_cast<size_t>(i * k + j)] = sum;
      if (j < i) {
        ASSERT_EQ(factor.data()[i * k + j], 0.0);
      }
    }
  }
  double worst = 0.0;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t column = factor.order()[static_cast<size_t>(j)];
      double sum = 0.0;
      for (int64_t m = 0; m < k; ++m) {
        const int64_t row = factor.order()[static_cast<size_t>(m)];
        double h = Hessian(statistics, row, column);
        if (row == column) h += h == 0.0 ? 1.0 : factor.added();
        sum += inverse[static_cast<size_t>(i * k + m)] * h;
      }
      worst = std::max(worst, std::abs(sum - (i == j ? 1.0 : 0.0)));
    }
  }
  EXPECT_LT(worst, 1e-8);
}

TEST(HessianFactor, IsTheFactorOfTheInverseForSizesAroundThePanels) {
  ThreadPool pool(2);
  for (const int64_t k : {1, 2, 127, 128, 129, 260}) {
    Random random(static_cast<uint32_t>(k));
    const InputStatistics statistics = CorrelatedInputs(k, 2 * k, &random);
    auto factor = HessianFactor::Create("site", statistics, {}, &pool);
    ASSERT_TRUE(factor.ok()) << factor.status();
    ExpectInverse(*factor, statistics);
    for (int64_t i = 1; i < k; ++i) {
      const int32_t before = factor->order()[static_cast<size_t>(i - 1)];
      const int32_t here = factor->order()[static_cast<size_t>(i)];
      EXPECT_GE(Hessian(statistics, before, before), Hessian(statistics, here, here));
    }
    auto natural = HessianFactor::Create("site", statistics, {.activation_order = false}, &pool);
    ASSERT_TRUE(natural.ok()) << natural.status();
    ExpectInverse(*natural, statistics);
    EXPECT_TRUE(std::is_sorted(natural->order().begin(), natural->order().end()));
  }
}

TEST(HessianFactor, DeadColumnsStandAlone) {
  ThreadPool pool(2);
  Random random(5);
  const InputStatistics statistics = CorrelatedInputs(40, 200, &random, {0, 7, 39});
  auto factor = HessianFactor::Create("site", statistics, {}, &pool);
  ASSERT_TRUE(factor.ok()) << factor.status();
  ExpectInverse(*factor, statistics);
}

TEST(HessianFactor, AllDeadIsTheIdentity) {
  ThreadPool pool(1);
  InputStatistics statistics = IdentityInputs(5);
  std::fill(statistics.hessian.begin(), statistics.hessian.end(), 0.0);
  auto factor = HessianFactor::Create("site", statistics, {}, &pool);
  ASSERT_TRUE(factor.ok()) << factor.status();
  for (int64_t i = 0; i < 25; ++i) EXPECT_EQ(factor->data()[i], i % 6 == 0 ? 1.0 : 0.0);
}

// Fewer tokens than columns: singular, which the damping mends.
TEST(HessianFactor, DampingMendsWhatIsRankDeficient) {
  ThreadPool pool(2);
  Random random(6);
  const InputStatistics statistics = CorrelatedInputs(150, 20, &random);
  auto factor = HessianFactor::Create("site", statistics, {}, &pool);
  ASSERT_TRUE(factor.ok()) << factor.status();
  EXPECT_EQ(factor->damping(), 0.01);
  ExpectInverse(*factor, statistics);
}

// An eigenvalue below zero, as rounding of sums can leave: the damping grows until it is covered.
TEST(HessianFactor, RaisesTheDampingAndSaysHowFarItWent) {
  ThreadPool pool(2);
  InputStatistics statistics = IdentityInputs(4);
  statistics.hessian[1] = statistics.hessian[4] = 1.05;  // eigenvalues 2.05 and -0.05
  auto factor = HessianFactor::Create("site", statistics, {}, &pool);
  ASSERT_TRUE(factor.ok()) << factor.status();
  EXPECT_NEAR(factor->damping(), 0.1, 1e-12);
  ExpectInverse(*factor, statistics);

  statistics.hessian[1] = statistics.hessian[4] = 3.0;
  const absl::Status status = HessianFactor::Create("layer 3 down", statistics, {}, &pool).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 3 down"));
}

TEST(HessianFactor, RefusesWhatDoesNotFit) {
  ThreadPool pool(1);
  const auto code = [&](const InputStatistics& statistics, const DampingOptions& options) {
    return HessianFactor::Create("site", statistics, options, &pool).status().code();
  };
  const InputStatistics good = IdentityInputs(3);
  EXPECT_EQ(code(good, {}), absl::StatusCode::kOk);
  for (const double bad : {-0.1, 1.5, std::nan("")}) {
    EXPECT_EQ(code(good, {.damping = bad}), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(code(good, {.max_damping = 0.001}), absl::StatusCode::kInvalidArgument);
  InputStatistics bad = good;
  bad.hessian.pop_back();
  EXPECT_EQ(code(bad, {}), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad.hessian[1] = std::nan("");
  EXPECT_EQ(code(bad, {}), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad.hessian[4] = -1.0;
  EXPECT_EQ(code(bad, {}), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad.hessian[8] = std::numeric_limits<double>::infinity();
  EXPECT_EQ(code(bad, {}), absl::StatusCode::kInvalidArgument);
}

TEST(HessianFactor, DoesNotDependOnThreads) {
  Random random(8);
  const InputStatistics statistics = CorrelatedInputs(300, 400, &random);
  ThreadPool one(1);
  ThreadPool three(3);
  auto a = HessianFactor::Create("site", statistics, {}, &one);
  auto b = HessianFactor::Create("site", statistics, {}, &three);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_TRUE(std::equal(a->data(), a->data() + 300 * 300, b->data()));
}

}  // namespace
}  // namespace nibble::quantize
