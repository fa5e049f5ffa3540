// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/arrival.h"

#include <cmath>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "client/load/random.h"

namespace nibble::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<double> GapsOf(const std::vector<double>& times) {
  std::vector<double> gaps;
  for (size_t i = 1; i < times.size(); ++i) gaps.push_back(times[i] - times[i - 1]);
  return gaps;
}

// Of the gaps: 1 for a Poisson process.
double VariationSquared(const std::vector<double>& gaps) {
  const auto count = static_cast<double>(gaps.size());
  const double mean = std::accumulate(gaps.begin(), gaps.end(), 0.0) / count;
  double squares = 0;
  for (const double gap : gaps) squares += (gap - mean) * (gap - mean);
  return squares / count / (mean * mean);
}

TEST(RandomTest, NumbersAreTheSameEverywhere) {
  // splitmix64 of seed 0, stream 0 seeds the standard's mt19937_64.
  std::mt19937_64 standard(16294208416658607535ULL);
  Random random(0, 0);
  EXPECT_EQ(random.Uniform(), static_cast<double>(standard() >> 11) * 0x1.0p-53);
  EXPECT_NE(Random(0, 0).Uniform(), Random(0, 1).Uniform());
  EXPECT_NE(Random(0, 0).Uniform(), Random(1, 0).Uniform());
}

TEST(RandomTest, BelowCoversItsRangeEvenly) {
  Random random(7, 0);
  std::vector<int> counts(5);
  for (int i = 0; i < 50'000; ++i) ++counts[random.Below(5)];
  for (const int count : counts) EXPECT_NEAR(count, 10'000, 500);  // 5 sigma = 450
  for (int i = 0; i < 1000; ++i) {
    const int64_t value = random.Between(-2, 3);
    EXPECT_GE(value, -2);
    EXPECT_LE(value, 3);
  }
}

TEST(RandomTest, GammaHasItsMeanAndVariance) {
  for (const double shape : {0.3, 1.0, 4.5}) {
    Random random(3, 9);
    constexpr int kCount = 200'000;
    double sum = 0;
    double squares = 0;
    for (int i = 0; i < kCount; ++i) {
      const double value = random.Gamma(shape);
      ASSERT_GE(value, 0);
      sum += value;
      squares += value * value;
    }
    const double mean = sum / kCount;
    EXPECT_NEAR(mean, shape, 0.02 * shape);  // variance of gamma: its shape
    EXPECT_NEAR(squares / kCount - mean * mean, shape, 0.06 * shape);
  }
}

TEST(ArrivalTest, WithoutARateAllComeAtOnce) {
  EXPECT_THAT(PlanArrivals({}, 3, 0), ElementsAre(0, 0, 0));
  EXPECT_THAT(PlanArrivals({.request_rate = 1}, 0, 0), ElementsAre());
}

TEST(ArrivalTest, InfiniteBurstinessIsEven) {
  const auto times = PlanArrivals({.request_rate = 4, .burstiness = INFINITY}, 4, 0);
  EXPECT_THAT(times, ElementsAre(0.25, 0.5, 0.75, 1.0));
}

TEST(ArrivalTest, TheLastComesAtCountOverRate) {
  for (const double burstiness : {0.5, 1.0, 10.0}) {
    const auto times = PlanArrivals({.request_rate = 8, .burstiness = burstiness}, 100, 5);
    EXPECT_DOUBLE_EQ(times.back(), 100.0 / 8);
    for (const double gap : GapsOf(times)) EXPECT_GE(gap, 0);
  }
}

TEST(ArrivalTest, GapsVaryAsMuchAsBurstinessSays) {
  for (const double burstiness : {0.5, 1.0, 10.0}) {
    const auto gaps =
        GapsOf(PlanArrivals({.request_rate = 8, .burstiness = burstiness}, 50'000, 5));
    EXPECT_NEAR(VariationSquared(gaps) * burstiness, 1.0, 0.1) << burstiness;
  }
}

TEST(ArrivalTest, SeedsDecide) {
  const ArrivalOptions options{.request_rate = 8};
  EXPECT_EQ(PlanArrivals(options, 50, 1), PlanArrivals(options, 50, 1));
  EXPECT_NE(PlanArrivals(options, 50, 1), PlanArrivals(options, 50, 2));
}

TEST(ArrivalTest, RampsGoFromOneRateToTheOther) {
  ArrivalOptions options{.burstiness = INFINITY, .start_rps = 1, .end_rps = 4};
  options.ramp_up_strategy = "linear";  // rates 1, 2.5, 4
  EXPECT_THAT(PlanArrivals(options, 3, 0),
              ElementsAre(1.0, ::testing::DoubleEq(1.4), ::testing::DoubleEq(1.65)));
  options.ramp_up_strategy = "exponential";  // 1, 2, 4
  EXPECT_THAT(PlanArrivals(options, 3, 0),
              ElementsAre(1.0, ::testing::DoubleEq(1.5), ::testing::DoubleEq(1.75)));
}

TEST(ArrivalTest, ARunEndsWithinTheLimit) {
  const auto first = [](const ArrivalOptions& options, int64_t count) {
    std::vector<std::string> violations;
    options.CheckSpan(count, &violations);
    return violations.empty() ? std::string() : violations.front();
  };
  EXPECT_EQ(first({}, 10'000'000), "");
  EXPECT_EQ(first({.request_rate = 1e-4}, 100'000), "");
  EXPECT_THAT(first({.request_rate = 1e-4}, 10'000'000),
              HasSubstr("10000000 requests at 0.0001 a second"));
  EXPECT_THAT(first({.ramp_up_strategy = "linear", .start_rps = 5, .end_rps = 1e-4}, 10'000'000),
              HasSubstr("the limit is 1000000000"));
}

TEST(ArrivalTest, ViolationsNameOptionAndLimit) {
  const auto first = [](const ArrivalOptions& options) {
    std::vector<std::string> violations;
    options.Validate(&violations);
    return violations.empty() ? std::string() : violations.front();
  };
  EXPECT_EQ(first({}), "");
  EXPECT_EQ(first({.request_rate = 0.5, .burstiness = INFINITY}), "");
  EXPECT_THAT(first({.request_rate = 0}), HasSubstr("--request-rate is 0"));
  EXPECT_THAT(first({.request_rate = -INFINITY}), HasSubstr("--request-rate is -inf"));
  EXPECT_THAT(first({.request_rate = NAN}), HasSubstr("--request-rate is nan"));
  EXPECT_THAT(first({.burstiness = -1}), HasSubstr("--burstiness is -1"));
  EXPECT_THAT(first({.start_rps = 1}), HasSubstr("go with --ramp-up-strategy"));
  EXPECT_THAT(first({.ramp_up_strategy = "linear"}), HasSubstr("needs --ramp-up-start-rps"));
  EXPECT_THAT(first({.ramp_up_strategy = "cubic", .start_rps = 1, .end_rps = 2}),
              HasSubstr("'cubic', want linear or exponential"));
  EXPECT_THAT(
      first({.request_rate = 3, .ramp_up_strategy = "linear", .start_rps = 1, .end_rps = 2}),
      HasSubstr("want one of them"));
  EXPECT_THAT(first({.ramp_up_strategy = "linear", .start_rps = 0, .end_rps = 2}),
              HasSubstr("--ramp-up-start-rps is 0"));
}

}  // namespace
}  // namespace nibble::client
