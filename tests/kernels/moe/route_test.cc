// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/route.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::Random;
using ::testing::Each;
using ::testing::ElementsAre;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kIdCanary = -77;
constexpr float kWeightCanary = 123.5F;

struct Shape {
  int64_t num_experts;
  int64_t k;
};
constexpr Shape kShapes[] = {{1, 1},   {2, 1},    {7, 7},    {8, 2},     {15, 4},  {16, 16},
                             {17, 17}, {33, 8},   {60, 4},   {64, 6},    {127, 3}, {128, 8},
                             {160, 6}, {256, 24}, {1023, 8}, {1024, 10}, {40, 33}};

struct Routing {
  std::vector<int32_t> expert_ids;
  std::vector<float> weights;
};

Routing RouteAll(const std::vector<float>& logits, const Shape& shape, bool renormalize, Isa isa,
                 ThreadPool* pool) {
  const int64_t num_tokens = static_cast<int64_t>(logits.size()) / shape.num_experts;
  const auto size = static_cast<size_t>(num_tokens * shape.k);
  Routing routing{std::vector<int32_t>(size + 16, kIdCanary),
                  std::vector<float>(size + 16, kWeightCanary)};
  Route({.num_tokens = num_tokens,
         .num_experts = shape.num_experts,
         .num_experts_per_tok = shape.k,
         .renormalize = renormalize,
         .logits = logits.data(),
         .expert_ids = routing.expert_ids.data(),
         .weights = routing.weights.data()},
        isa, pool);
  for (size_t i = size; i < size + 16; ++i) {
    EXPECT_EQ(routing.expert_ids[i], kIdCanary) << "written past the end";
    EXPECT_EQ(routing.weights[i], kWeightCanary) << "written past the end";
  }
  routing.expert_ids.resize(size);
  routing.weights.resize(size);
  return routing;
}

// Normal logits on a coarse grid (ties), of which some are -0, infinite, or very low.
std::vector<float> AwkwardLogits(Random& random, int64_t count) {
  std::vector<float> logits = random.Normals(count, 4.0F);
  for (float& x : logits) {
    const int64_t kind = random.Int(0, 99);
    if (kind < 40) x = std::round(x);
    if (kind == 40) x = -0.0F;
    if (kind == 41) x = -kInfinity;
    if (kind >= 42 && kind < 50) x *= 25.0F;  // exp is subnormal or 0
  }
  return logits;
}

class RouteTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this machine has no " << ToString(GetParam());
    }
  }
  Routing RouteOne(const std::vector<float>& logits, int64_t k, bool renormalize = true) {
    return RouteAll(logits, {static_cast<int64_t>(logits.size()), k}, renormalize, GetParam(),
                    &pool_);
  }
  ThreadPool pool_{2};
};

// The equation in double, and a sort.
TEST_P(RouteTest, IsTheEquation) {
  Random random(1);
  for (const Shape& shape : kShapes) {
    const int64_t num_tokens = 5;
    const std::vector<float> logits = random.Normals(num_tokens * shape.num_experts, 3.0F);
    for (const bool renormalize : {true, false}) {
      const Routing routing = RouteAll(logits, shape, renormalize, GetParam(), &pool_);
      for (int64_t t = 0; t < num_tokens; ++t) {
        const float* const row = logits.data() + t * shape.num_experts;
        std::vector<int32_t> order(static_cast<size_t>(shape.num_experts));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [row](int32_t a, int32_t b) { return row[a] > row[b]; });
        double sum = 0.0;
        for (int64_t i = 0; i < (renormalize ? shape.k : shape.num_experts); ++i) {
          sum += std::exp(static_cast<double>(row[order[static_cast<size_t>(i)]]) - row[order[0]]);
        }
        for (int64_t j = 0; j < shape.k; ++j) {
          const auto at = static_cast<size_t>(t * shape.k + j);
          const int32_t id = order[static_cast<size_t>(j)];
          ASSERT_EQ(routing.expert_ids[at], id) << shape.num_experts << " experts, choice " << j;
          const double p = std::exp(static_cast<double>(row[id]) - row[order[0]]) / sum;
          // The difference of logits (at most 40) is rounded once: 40 * 2^-24; exp, the sum of up
          // to 1024 / 16 + 4 terms in a row and the division add 70 * 2^-24 at most.
          EXPECT_NEAR(routing.weights[at], p, p * 110 * 0x1p-24 + 1e-38);
        }
      }
    }
  }
}

TEST_P(RouteTest, IsTheReferenceToTheBit) {
  Random random(2);
  for (const Shape& shape : kShapes) {
    // More than a piece of tokens, so that threads share them.
    const std::vector<float> logits = AwkwardLogits(random, 150 * shape.num_experts);
    for (const bool renormalize : {true, false}) {
      const Routing expected = RouteAll(logits, shape, renormalize, Isa::kRef, &pool_);
      const Routing actual = RouteAll(logits, shape, renormalize, GetParam(), &pool_);
      ASSERT_EQ(actual.expert_ids, expected.expert_ids) << shape.num_experts << " experts";
      for (size_t i = 0; i < expected.weights.size(); ++i) {
        if (std::isnan(expected.weights[i]) && std::isnan(actual.weights[i])) continue;
        ASSERT_EQ(std::memcmp(&actual.weights[i], &expected.weights[i], sizeof(float)), 0)
            << shape.num_experts << " experts, k " << shape.k << ", at " << i << ": "
            << actual.weights[i] << " and not " << expected.weights[i];
      }
    }
  }
}

TEST_P(RouteTest, ARowDependsOnItselfAlone) {
  Random random(3);
  const Shape shape{60, 4};
  const std::vector<float> logits = random.Normals(200 * shape.num_experts);
  for (const bool renormalize : {true, false}) {
    const Routing all = RouteAll(logits, shape, renormalize, GetParam(), &pool_);
    for (const int64_t t : {0, 31, 32, 199}) {
      const auto row = logits.begin() + t * shape.num_experts;
      const Routing one =
          RouteAll({row, row + shape.num_experts}, shape, renormalize, GetParam(), &pool_);
      for (size_t j = 0; j < 4; ++j) {
        EXPECT_EQ(one.expert_ids[j], all.expert_ids[static_cast<size_t>(t * shape.k) + j]);
        EXPECT_EQ(one.weights[j], all.weights[static_cast<size_t>(t * shape.k) + j]);
      }
    }
  }
}

TEST_P(RouteTest, EqualLogitsGoToTheLowerExpert) {
  EXPECT_THAT(RouteOne({1, 3, 3, 2, 3, 2}, 5).expert_ids, ElementsAre(1, 2, 4, 3, 5));
  EXPECT_THAT(RouteOne({-0.0F, 0.0F, -0.0F}, 3).expert_ids, ElementsAre(0, 1, 2));
  EXPECT_THAT(RouteOne({-1.0F, -0.0F, 0.0F}, 2).expert_ids, ElementsAre(1, 2));
  const std::vector<float> same(40, -2.5F);  // across vectors
  const Routing routing = RouteOne(same, 20);
  for (int32_t j = 0; j < 20; ++j) EXPECT_EQ(routing.expert_ids[static_cast<size_t>(j)], j);
  EXPECT_THAT(routing.weights, Each(0.05F));
}

TEST_P(RouteTest, AllExpertsAndOneExpert) {
  const Routing one = RouteOne({-7.0F}, 1);
  EXPECT_THAT(one.expert_ids, ElementsAre(0));
  EXPECT_THAT(one.weights, ElementsAre(1.0F));
  for (const bool renormalize : {true, false}) {
    const Routing all = RouteOne({0.0F, 1.0F, -1.0F}, 3, renormalize);
    EXPECT_THAT(all.expert_ids, ElementsAre(1, 0, 2));
    EXPECT_NEAR(all.weights[0] + all.weights[1] + all.weights[2], 1.0F, 1e-6F);
  }
}

TEST_P(RouteTest, WhatIsNotFinite) {
  for (const bool renormalize : {true, false}) {
    // NaN, of either sign, is chosen as -inf is, and told by the weights.
    Routing routing = RouteOne({kNaN, 1.0F, -kNaN, -kInfinity, 2.0F}, 4, renormalize);
    EXPECT_THAT(routing.expert_ids, ElementsAre(4, 1, 0, 2));
    EXPECT_THAT(routing.weights, Each(::testing::IsNan()));
    routing = RouteOne({kNaN, 1.0F, 2.0F}, 1, renormalize);
    EXPECT_THAT(routing.expert_ids, ElementsAre(2));
    EXPECT_THAT(routing.weights, Each(::testing::IsNan()));
    routing = RouteOne(std::vector<float>(9, kNaN), 9, renormalize);
    EXPECT_THAT(routing.expert_ids, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8));
    routing = RouteOne({1.0F, kInfinity, 0.0F}, 2, renormalize);
    EXPECT_THAT(routing.expert_ids, ElementsAre(1, 0));
    EXPECT_THAT(routing.weights, Each(::testing::IsNan()));
    routing = RouteOne(std::vector<float>(3, -kInfinity), 2, renormalize);
    EXPECT_THAT(routing.expert_ids, ElementsAre(0, 1));
    EXPECT_THAT(routing.weights, Each(::testing::IsNan()));
    // An expert that is shut out has no weight; what is huge does not overflow.
    routing = RouteOne({-kInfinity, 3.0e38F, -3.0e38F}, 3, renormalize);
    EXPECT_THAT(routing.expert_ids, ElementsAre(1, 2, 0));
    EXPECT_THAT(routing.weights, ElementsAre(1.0F, 0.0F, 0.0F));
  }
}

TEST_P(RouteTest, NoTokensAreFine) {
  Route({.num_tokens = 0, .num_experts = 8, .num_experts_per_tok = 2}, GetParam(), &pool_);
}

INSTANTIATE_TEST_SUITE_P(Variants, RouteTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx),
                         [](const auto& variant) { return std::string(ToString(variant.param)); });

}  // namespace
}  // namespace nibble::kernels
