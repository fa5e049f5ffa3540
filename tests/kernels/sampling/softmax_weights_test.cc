// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/sampling/softmax_weights.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/sampling/exp.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::Random;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(ExpTest, WithinTwoUnitsInTheLastPlace) {
  for (float x = 0.0F; x > -87.0F; x -= 0.00137F) {
    const double expected = std::exp(static_cast<double>(x));
    ASSERT_NEAR(ExpNonPositive(x), expected, 2.4e-7 * expected) << x;
  }
  EXPECT_EQ(ExpNonPositive(0.0F), 1.0F);
  EXPECT_EQ(ExpNonPositive(-88.0F), 0.0F);
  EXPECT_EQ(ExpNonPositive(-kInfinity), 0.0F);
  EXPECT_EQ(ExpNonPositive(kNaN), 0.0F);
}

// What a row weighs by the header's equation.
std::vector<double> Expected(const std::vector<float>& logits, const SoftmaxWeights& args) {
  std::vector<double> weights;
  for (const float logit : logits) {
    const float exponent = (logit - args.max_logit) / args.temperature;
    weights.push_back(exponent >= args.min_exponent ? std::exp(static_cast<double>(exponent))
                                                    : 0.0);
  }
  return weights;
}

class SoftmaxWeightsTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best())
      GTEST_SKIP() << "this CPU has no " << ToString(GetParam());
  }
};

TEST_P(SoftmaxWeightsTest, BitEqualToTheReferenceAndNearTheEquation) {
  Random random(5);
  for (const int64_t count : {1, 7, 8, 9, 15, 16, 17, 31, 255, 256, 257, 271, 520, 3001}) {
    std::vector<float> logits = random.Normals(count, 6.0F);
    float max_logit = -kInfinity;
    for (const float logit : logits) max_logit = std::max(max_logit, logit);
    if (count > 8) {
      logits[3] = kNaN;
      logits[5] = -kInfinity;
      logits[static_cast<size_t>(count) - 1] = kNaN;
    }
    for (const float temperature : {1.0F, 0.3F, 1e-30F, 2.5F}) {
      for (const float min_exponent : {-kInfinity, -3.0F}) {
        const SoftmaxWeights args = {.logits = logits.data(),
                                     .count = count,
                                     .max_logit = max_logit,
                                     .temperature = temperature,
                                     .min_exponent = min_exponent};
        const int64_t num_sums = (count + kWeightChunk - 1) / kWeightChunk;
        // One more than there are, to see that it is left alone.
        std::vector<float> weights(static_cast<size_t>(count) + 1, -7.0F);
        std::vector<float> ref_weights(weights);
        std::vector<double> sums(static_cast<size_t>(num_sums) + 1, -7.0);
        std::vector<double> ref_sums(sums);
        WeighLogits(args, weights.data(), GetParam());
        WeighLogits(args, ref_weights.data(), Isa::kRef);
        SumWeights(args, sums.data(), GetParam());
        SumWeights(args, ref_sums.data(), Isa::kRef);
        ASSERT_TRUE(AllEqual<float>({weights.data(), 1, count + 1, count + 1},
                                    {ref_weights.data(), 1, count + 1, count + 1}))
            << count << " at temperature " << temperature;
        ASSERT_TRUE(AllEqual<double>({sums.data(), 1, num_sums + 1, num_sums + 1},
                                     {ref_sums.data(), 1, num_sums + 1, num_sums + 1}))
            << count << " at temperature " << temperature;

        const std::vector<double> expected = Expected(logits, args);
        double sum = 0.0;
        double expected_sum = 0.0;
        for (size_t i = 0; i < expected.size(); ++i) {
          // exp.h: 2 units in the last place, and 0 where float is subnormal.
          ASSERT_NEAR(weights[i], expected[i], 2.4e-7 * expected[i] + 2e-38) << i;
          expected_sum += expected[i];
        }
        for (int64_t i = 0; i < num_sums; ++i) sum += sums[static_cast<size_t>(i)];
        ASSERT_NEAR(sum, expected_sum, 2.5e-7 * expected_sum);
      }
    }
  }
}

TEST_P(SoftmaxWeightsTest, NothingToWeighWritesNothing) {
  float weight = 3.0F;
  double sum = 3.0;
  WeighLogits({}, &weight, GetParam());
  SumWeights({}, &sum, GetParam());
  EXPECT_EQ(weight, 3.0F);
  EXPECT_EQ(sum, 3.0);
}

INSTANTIATE_TEST_SUITE_P(Isas, SoftmaxWeightsTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx),
                         [](const auto& param) { return std::string(ToString(param.param)); });

}  // namespace
}  // namespace nibble::kernels
