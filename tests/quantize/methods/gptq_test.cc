// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/gptq.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "quantize/methods/clip.h"
#include "quantize/methods/rounding.h"
#include "tests/quantize/methods/calibration_fixture.h"

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;
using testing::Random;

constexpr GptqOptions kPlain = {.search_channel_scale = false, .refinement_rounds = 0};

std::vector<float> Scales(const QuantizedWeight& weight) {
  return std::visit([](const auto& w) { return w.scales; }, weight);
}

bool SameBits(const QuantizedWeight& a, const QuantizedWeight& b) {
  return std::visit(
      [&](const auto& x) {
        const auto* y = std::get_if<std::decay_t<decltype(x)>>(&b);
        return y != nullptr && x.codes == y->codes && x.scales == y->scales;
      },
      a);
}

// Optimal Brain Surgeon as it is written down: one column at a time, the inverse Hessian of what is
// left updated explicitly.
std::vector<double> NaiveGptq(const Matrix& matrix, const InputStatistics& statistics,
                              const HessianFactor& factor, const std::vector<float>& scales,
                              int64_t group_size) {
  const int64_t k = matrix.k;
  const auto at = [k](int64_t i, int64_t j) { return static_cast<size_t>(i * k + j); };
  // Gauss-Jordan.
  std::vector<double> h = statistics.hessian;
  std::vector<double> inverse(h.size());
  for (int64_t i = 0; i < k; ++i) {
    h[at(i, i)] += h[at(i, i)] == 0.0 ? 1.0 : factor.added();
    inverse[at(i, i)] = 1.0;
  }
  for (int64_t i = 0; i < k; ++i) {
    const double pivot = h[at(i, i)];
    for (int64_t j = 0; j < k; ++j) {
      h[at(i, j)] /= pivot;
      inverse[at(i, j)] /= pivot;
    }
    for (int64_t row = 0; row < k; ++row) {
      if (row == i) continue;
      const double f = h[at(row, i)];
      for (int64_t j = 0; j < k; ++j) {
        h[at(row, j)] -= f * h[at(i, j)];
        inverse[at(row, j)] -= f * inverse[at(i, j)];
      }
    }
  }
  std::vector<double> w(matrix.weight.begin(), matrix.weight.end());
  std::vector<double> z(w.size());
  for (const int32_t column : factor.order()) {
    const double pivot = inverse[at(column, column)];
    for (int64_t row = 0; row < matrix.n; ++row) {
      const double scale =
          scales[static_cast<size_t>(row * (k / group_size) + column / group_size)];
      const double level = std::clamp(std::nearbyint(w[at(row, column)] / scale), -8.0, 7.0);
      z[at(row, column)] = scale * level;
      const double error = (w[at(row, column)] - z[at(row, column)]) / pivot;
      for (int64_t j = 0; j < k; ++j) w[at(row, j)] -= error * inverse[at(column, j)];
    }
    const std::vector<double> before = inverse;
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        inverse[at(i, j)] -= before[at(i, column)] * before[at(column, j)] / pivot;
      }
    }
  }
  return z;
}

TEST(Gptq, IsTheColumnByColumnMethod) {
  ThreadPool pool(2);
  for (const int64_t k : {1, 24, 130, 160}) {  // below, at and beyond a block of columns
    Random random(static_cast<uint32_t>(100 + k));
    const InputStatistics statistics = CorrelatedInputs(k, 3 * k, &random);
    const Matrix matrix = RandomMatrix(5, k, &random);
    const int64_t group_size = k % 8 == 0 ? 8 : k;
    const WeightScheme scheme = {.group_size = group_size};
    for (const bool activation_order : {true, false}) {
      auto factor =
          HessianFactor::Create("m", statistics, {.activation_order = activation_order}, &pool);
      ASSERT_TRUE(factor.ok()) << factor.status();
      auto gptq = QuantizeGptq(matrix, statistics, *factor, scheme, kPlain, &pool);
      ASSERT_TRUE(gptq.ok()) << gptq.status();
      const std::vector<double> expected =
          NaiveGptq(matrix, statistics, *factor, Scales(gptq->weight), group_size);
      const std::vector<float> actual = Dequantize(gptq->weight);
      for (size_t i = 0; i < actual.size(); ++i) {
        ASSERT_NEAR(actual[i], expected[i], 1e-6) << "element " << i << " of k " << k;
      }
    }
  }
}

TEST(Gptq, WithUncorrelatedInputsIsRoundToNearest) {
  ThreadPool pool(2);
  Random random(31);
  const InputStatistics statistics = IdentityInputs(256);
  const Matrix matrix = RandomMatrix(40, 256, &random);
  for (const WeightScheme& scheme : {WeightScheme{}, WeightScheme{.bits = 8}}) {
    auto rtn = QuantizeRtnMatrix(matrix.weight.data(), 40, 256, scheme, &pool);
    auto factor = HessianFactor::Create("m", statistics, {}, &pool);
    ASSERT_TRUE(rtn.ok() && factor.ok());
    const std::vector<float> scales = Scales(*rtn);
    GptqOptions options = kPlain;
    options.scales = &scales;
    auto gptq = QuantizeGptq(matrix, statistics, *factor, scheme, options, &pool);
    ASSERT_TRUE(gptq.ok()) << gptq.status();
    EXPECT_TRUE(SameBits(gptq->weight, *rtn));
  }
}

// Every step of the method lowers what it minimizes, on any inputs and for every scheme: the error
// with the damping. Of fewer tokens than channels the damping is a good part of it, so that the
// error alone may rise a little.
TEST(Gptq, EachStepCostsLessThanTheOneBefore) {
  constexpr double kRounded = 0x1p-23;  // scale * code as a float, relative to the weights
  ThreadPool pool(2);
  for (const int64_t k : {32, 128, 192}) {
    for (const int64_t num_tokens : {k / 4, 4 * k}) {
      Random random(static_cast<uint32_t>(k + num_tokens));
      const InputStatistics statistics = CorrelatedInputs(k, num_tokens, &random);
      const Matrix matrix = RandomMatrix(35, k, &random);
      auto factor = HessianFactor::Create("m", statistics, {}, &pool);
      ASSERT_TRUE(factor.ok()) << factor.status();
      InputStatistics damped = statistics;
      for (int64_t i = 0; i < k; ++i) {
        damped.hessian[static_cast<size_t>(i * (k + 1))] += factor->added();
      }
      for (const WeightScheme& scheme :
           {WeightScheme{.group_size = 32}, WeightScheme{.group_size = k},
            WeightScheme{.group_size = 16, .folded_scales = false}, WeightScheme{.bits = 8}}) {
        auto rtn = QuantizeRtnMatrix(matrix.weight.data(), matrix.n, k, scheme, &pool);
        ASSERT_TRUE(rtn.ok()) << rtn.status();
        std::vector<double> costs = {*OutputError(matrix.weight.data(), *rtn, damped, &pool)};
        for (const GptqOptions& options :
             {kPlain, GptqOptions{.refinement_rounds = 0}, GptqOptions{}}) {
          auto gptq = QuantizeGptq(matrix, statistics, *factor, scheme, options, &pool);
          ASSERT_TRUE(gptq.ok()) << gptq.status();
          costs.push_back(*OutputError(matrix.weight.data(), gptq->weight, damped, &pool));
          // What it says of itself is what a look from outside finds.
          auto error = OutputError(matrix.weight.data(), gptq->weight, statistics, &pool);
          ASSERT_TRUE(error.ok());
          EXPECT_NEAR(*error, gptq->output_error, kRounded);
        }
        SCOPED_TRACE(fmt::format("k {} tokens {} bits {} group {}", k, num_tokens, scheme.bits,
                                 scheme.group_size));
        EXPECT_LT(costs[1], costs[0]);
        EXPECT_LE(costs[2], costs[1] + kRounded);
        EXPECT_LE(costs[3], costs[2] + kRounded);
        EXPECT_LT(costs[3], costs[1]);
      }
    }
  }
}

TEST(Gptq, FoldedScalesStayFolded) {
  ThreadPool pool(2);
  Random random(33);
  const InputStatistics statistics = CorrelatedInputs(256, 600, &random);
  const Matrix matrix = RandomMatrix(50, 256, &random);
  auto factor = HessianFactor::Create("m", statistics, {}, &pool);
  ASSERT_TRUE(factor.ok());
  for (const int64_t group_size : {32, 128, 256}) {
    auto gptq = QuantizeGptq(matrix, statistics, *factor, {.group_size = group_size}, {}, &pool);
    ASSERT_TRUE(gptq.ok()) << gptq.status();
    const auto& weight = std::get<kernels::Int4Weight>(gptq->weight);
    EXPECT_TRUE(weight.Validate().ok());
    EXPECT_TRUE(kernels::FindFoldedScales(weight, 0.0F).ok())
        << kernels::FindFoldedScales(weight, 0.0F).status();
  }
}

TEST(Gptq, DoesNotDependOnThreads) {
  Random random(34);
  const InputStatistics statistics = CorrelatedInputs(192, 300, &random);
  const Matrix matrix = RandomMatrix(71, 192, &random);
  ThreadPool one(1);
  ThreadPool three(3);
  auto factor = HessianFactor::Create("m", statistics, {}, &one);
  ASSERT_TRUE(factor.ok());
  auto a = QuantizeGptq(matrix, statistics, *factor, {.group_size = 64}, {}, &one);
  auto b = QuantizeGptq(matrix, statistics, *factor, {.group_size = 64}, {}, &three);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_TRUE(SameBits(a->weight, b->weight));
  EXPECT_EQ(a->output_error, b->output_error);
}

TEST(Gptq, DeadColumnsAreRoundedToNearestAndZerosStay) {
  ThreadPool pool(2);
  Random random(35);
  const InputStatistics statistics = CorrelatedInputs(64, 200, &random, {3, 40});
  Matrix matrix = RandomMatrix(6, 64, &random);
  std::fill_n(matrix.weight.begin() + 2 * 64, 64, 0.0F);       // a row of zeros
  std::fill_n(matrix.weight.begin() + 4 * 64 + 32, 32, 0.0F);  // a group of zeros
  auto factor = HessianFactor::Create("m", statistics, {}, &pool);
  ASSERT_TRUE(factor.ok());
  for (const bool folded : {true, false}) {
    const WeightScheme scheme = {.group_size = 32, .folded_scales = folded};
    auto gptq = QuantizeGptq(matrix, statistics, *factor, scheme, {}, &pool);
    ASSERT_TRUE(gptq.ok()) << gptq.status();
    const std::vector<float> scales = Scales(gptq->weight);
    auto rounded = RoundToScales(matrix.weight.data(), 6, 64, scheme, scales, &pool);
    ASSERT_TRUE(rounded.ok()) << rounded.status();
    const std::vector<float> actual = Dequantize(gptq->weight);
    const std::vector<float> nearest = Dequantize(*rounded);
    for (int64_t row = 0; row < 6; ++row) {
      for (const int64_t column : {3, 40}) {
        const auto i = static_cast<size_t>(row * 64 + column);
        EXPECT_EQ(actual[i], nearest[i]);
      }
    }
    for (size_t i = 2 * 64; i < 3 * 64; ++i) EXPECT_EQ(actual[i], 0.0F);
  }
}

// Rows that are next to nothing are no reason to end a run: round to nearest takes them, too.
TEST(Gptq, RowsNextToNothing) {
  ThreadPool pool(1);
  Random random(37);
  const InputStatistics statistics = CorrelatedInputs(64, 200, &random);
  auto factor = HessianFactor::Create("m", statistics, {}, &pool);
  ASSERT_TRUE(factor.ok());
  for (const float size : {1e-28F, 3e-30F, 1e-33F, 1e-35F, 1e-37F}) {
    Matrix matrix = RandomMatrix(3, 64, &random);
    for (int64_t i = 64; i < 2 * 64; ++i) matrix.weight[static_cast<size_t>(i)] *= 20.0F * size;
    for (const WeightScheme& scheme : {WeightScheme{.group_size = 32}, WeightScheme{.bits = 8}}) {
      auto rtn = QuantizeRtnMatrix(matrix.weight.data(), 3, 64, scheme, &pool);
      auto clip = SearchClipping(matrix, statistics, scheme, &pool);
      ASSERT_TRUE(rtn.ok() && clip.ok()) << rtn.status() << clip.status();
      auto rounded = RoundToScales(matrix.weight.data(), 3, 64, scheme, clip->scales, &pool);
      ASSERT_TRUE(rounded.ok()) << rounded.status();
      const std::vector<float> rtn_scales = Scales(*rtn);
      const std::vector<float>* starts[] = {nullptr, &rtn_scales, &clip->scales};
      for (const std::vector<float>* scales : starts) {
        auto gptq = QuantizeGptq(matrix, statistics, *factor, scheme, {.scales = scales}, &pool);
        ASSERT_TRUE(gptq.ok()) << gptq.status() << " size " << size << " bits " << scheme.bits;
        EXPECT_LT(gptq->output_error, 0.2);
        for (const float value : Dequantize(gptq->weight)) EXPECT_TRUE(std::isfinite(value));
      }
    }
  }
}

TEST(Gptq, RefusesWhatDoesNotFitByName) {
  ThreadPool pool(1);
  Random random(36);
  const InputStatistics statistics = CorrelatedInputs(32, 64, &random);
  const Matrix good = RandomMatrix(3, 32, &random);
  auto factor = HessianFactor::Create("m", statistics, {}, &pool);
  ASSERT_TRUE(factor.ok());
  const auto expect_refused = [&](const Matrix& matrix, const InputStatistics& inputs,
                                  const WeightScheme& scheme, const GptqOptions& options) {
    const absl::Status status =
        QuantizeGptq(matrix, inputs, *factor, scheme, options, &pool).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr("layer.proj"));
  };
  const WeightScheme scheme = {.group_size = 32};
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), 1e20F}) {
    Matrix matrix = good;
    matrix.weight[40] = bad;
    expect_refused(matrix, statistics, scheme, {});
  }
  Matrix short_matrix = good;
  short_matrix.weight.pop_back();
  expect_refused(short_matrix, statistics, scheme, {});
  expect_refused(good, statistics, {.group_size = 24}, {});
  expect_refused(good, statistics, {.bits = 3, .group_size = 32}, {});
  expect_refused(good, IdentityInputs(31), scheme, {});
  expect_refused(RandomMatrix(3, 64, &random), IdentityInputs(64), scheme, {});
  std::vector<float> scales = {1.0F, 1.0F};
  expect_refused(good, statistics, scheme, {.scales = &scales});
  scales = {1.0F, std::nanf(""), 1.0F};
  expect_refused(good, statistics, scheme, {.scales = &scales});
  scales = {1.0F, 1.03F, 1.0F, 1.0F, 1.0F, 1.0F};
  expect_refused(good, statistics, {.group_size = 16}, {.scales = &scales});  // do not fold
}

}  // namespace
}  // namespace nibble::quantize
