// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/awq.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "quantize/methods/rounding.h"
#include "tests/quantize/methods/block_data.h"
#include "tests/testing/random.h"

namespace nibble::quantize {
namespace {

using nibble::testing::Random;
using testing::BlockSizes;
using testing::MakeRope;
using testing::RandomBlock;
using testing::SchemesOf;
using testing::StatisticsOfBlock;

constexpr int64_t kNumTokens = 48;
using Magnitude = SiteChange::Magnitude;

const BlockSizes kSizes = {
    .attention = {.num_heads = 4, .num_kv_heads = 2, .head_dim = 16}, .hidden = 64, .ffn = 64};

class AwqTest : public ::testing::TestWithParam<WeightScheme> {
 protected:
  // A block some of whose channels carry far more than the rest, as in trained models.
  AwqTest() : block_(RandomBlock(kSizes, 1)) {
    for (size_t j = 3; j < block_.input_norm.size(); j += 16) {
      block_.input_norm[j] *= 20.0F;
      block_.post_attention_norm[j] *= 30.0F;
    }
    statistics_ = StatisticsOfBlock(block_, Settings(), x_, &pool_);
  }

  BlockSettings Settings() const { return {.attention = kSizes.attention, .rope = &rope_}; }
  EqualizationContext Context(ThreadPool* pool) const {
    return {.shape = kSizes.attention,
            .schemes = SchemesOf(GetParam()),
            .isa = HostCpuFeatures().Best(),
            .pool = pool};
  }
  std::vector<float> Output(const BlockWeights& weights) {
    auto block = FloatBlock::Create(weights, Settings(), Gradient::kNone, &pool_);
    EXPECT_TRUE(block.ok()) << block.status();
    BlockTrace trace;
    EXPECT_TRUE(block->Forward(x_.data(), kNumTokens, &trace, &pool_).ok());
    return trace.y;
  }

  ThreadPool pool_{1};
  const kernels::RopeTable rope_ = MakeRope(kSizes, kNumTokens);
  const std::vector<float> x_ = Random(2).Normals(kNumTokens * kSizes.hidden);
  BlockWeights block_;
  BlockStatistics statistics_;
};

// The definition in plain loops over tokens, on its own rounding of activations.
SiteError PlainError(const std::vector<const Matrix*>& consumers, const InputStatistics& statistics,
                     const WeightScheme& scheme, const std::vector<float>& scale) {
  ThreadPool pool(1);
  SiteError error;
  for (const Matrix* matrix : consumers) {
    const auto k = static_cast<size_t>(matrix->k);
    std::vector<float> scaled = matrix->weight;
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i] *= scale[i % k];
    auto rounded = QuantizeRtnMatrix(scaled.data(), matrix->n, matrix->k, scheme, &pool);
    EXPECT_TRUE(rounded.ok()) << rounded.status();
    const std::vector<float> q = Dequantize(*rounded);
    double weights = 0.0;
    double activations = 0.0;
    double energy = 0.0;
    for (size_t t = 0; t < static_cast<size_t>(statistics.num_samples); ++t) {
      const float* x = statistics.samples.data() + t * k;
      float largest = 0.0F;
      for (size_t j = 0; j < k; ++j) largest = std::max(largest, std::abs(x[j] / scale[j]));
      const double step = largest / 127.0;
      for (size_t row = 0; row < static_cast<size_t>(matrix->n); ++row) {
        double y = 0.0;
        double d = 0.0;
        double e = 0.0;
        for (size_t j = 0; j < k; ++j) {
          const double w = matrix->weight[row * k + j];
          const double input = x[j] / scale[j];
          y += w * x[j];
          d += (q[row * k + j] / scale[j] - w) * x[j];
          e += q[row * k + j] * (std::nearbyint(input / step) * step - input);
        }
        energy += y * y;
        weights += d * d;
        activations += e * e;
      }
    }
    const auto count = static_cast<double>(consumers.size());
    error.weights += weights / energy / count;
    if (scheme.activation_bits == 8) error.activations += activations / energy / count;
  }
  return error;
}

TEST_P(AwqTest, MeterMeasuresItsDefinition) {
  Random random(5);
  for (const Site site : kSites) {
    const auto consumers = ConsumersOf(site, block_);
    const InputStatistics& statistics = StatisticsOf(site, statistics_);
    auto meter = SiteErrorMeter::Create({.consumers = consumers,
                                         .statistics = &statistics,
                                         .scheme = GetParam(),
                                         .isa = HostCpuFeatures().Best()},
                                        &pool_);
    ASSERT_TRUE(meter.ok()) << meter.status();
    std::vector<float> scale(static_cast<size_t>(statistics.k));
    for (float& s : scale) s = random.Uniform(0.3F, 3.0F);
    auto error = meter->Measure(scale, &pool_);
    ASSERT_TRUE(error.ok()) << error.status();
    const SiteError expected = PlainError(consumers, statistics, GetParam(), scale);
    EXPECT_NEAR(error->weights, expected.weights, 1e-3 * expected.weights) << ToString(site);
    EXPECT_NEAR(error->activations, expected.activations, 1e-2 * expected.activations)
        << ToString(site);
    EXPECT_EQ(error->activations > 0.0, GetParam().activation_bits == 8);
  }
}

TEST_P(AwqTest, MeterOfSomeRowsTakesThemEvenly) {
  const InputStatistics& statistics = statistics_.down;
  auto meter = SiteErrorMeter::Create({.consumers = {&block_.down},
                                       .statistics = &statistics,
                                       .scheme = GetParam(),
                                       .max_rows = 3,
                                       .isa = HostCpuFeatures().Best()},
                                      &pool_);
  ASSERT_TRUE(meter.ok()) << meter.status();
  Matrix rows = {.n = 3, .k = block_.down.k};
  for (const int64_t row : {0, 21, 42}) {  // of 64
    const auto begin = block_.down.weight.begin() + row * rows.k;
    rows.weight.insert(rows.weight.end(), begin, begin + rows.k);
  }
  const std::vector<float> ones(static_cast<size_t>(rows.k), 1.0F);
  auto error = meter->Measure(ones, &pool_);
  ASSERT_TRUE(error.ok()) << error.status();
  const double expected = PlainError({&rows}, statistics, GetParam(), ones).total();
  EXPECT_NEAR(error->total(), expected, 1e-2 * expected);
}

TEST_P(AwqTest, LowersTheErrorOfTheSitesItChanges) {
  const std::vector<float> before = Output(block_);
  const BlockWeights original = block_;
  const BlockStatistics seen = statistics_;
  auto changes = SearchScales(Context(&pool_), {.num_steps = 8}, &block_, &statistics_);
  ASSERT_TRUE(changes.ok()) << changes.status();
  ASSERT_EQ(changes->size(), 4U);
  int num_changed = 0;
  for (size_t i = 0; i < 4; ++i) {
    const SiteChange& change = (*changes)[i];
    EXPECT_EQ(change.site, kSites[i]);
    const auto consumers = ConsumersOf(change.site, original);
    const InputStatistics& statistics = StatisticsOf(change.site, seen);
    const std::vector<float> ones(static_cast<size_t>(statistics.k), 1.0F);
    EXPECT_NEAR(change.before.total(), PlainError(consumers, statistics, GetParam(), ones).total(),
                1e-2 * change.before.total());
    if (change.magnitude == Magnitude::kNone) {
      EXPECT_TRUE(change.scale.empty());
      EXPECT_EQ(change.after.total(), change.before.total());
      continue;
    }
    ++num_changed;
    EXPECT_LT(change.after.total(), change.before.total());
    EXPECT_NEAR(change.after.total(),
                PlainError(consumers, statistics, GetParam(), change.scale).total(),
                1e-2 * change.after.total());
  }
  EXPECT_GE(num_changed, 1);
  // What is applied is what was found, and the block's function stays.
  const BlockStatistics expected = StatisticsOfBlock(block_, Settings(), x_, &pool_);
  for (const Site site : kSites) {
    const auto& actual = StatisticsOf(site, statistics_).abs_max;
    for (size_t j = 0; j < actual.size(); ++j) {
      EXPECT_NEAR(actual[j], StatisticsOf(site, expected).abs_max[j], 1e-4F * actual[j]);
    }
  }
  const std::vector<float> after = Output(block_);
  for (size_t i = 0; i < after.size(); ++i) EXPECT_NEAR(after[i], before[i], 2e-3) << i;
}

// Comparing candidates on some rows must not let through what harms all of them.
TEST_P(AwqTest, ACandidateOfSomeRowsIsMeasuredOnAll) {
  for (const int64_t max_rows : {1, 5, 31}) {
    BlockWeights block = RandomBlock(kSizes, 9);
    BlockStatistics statistics = StatisticsOfBlock(block, Settings(), x_, &pool_);
    const BlockWeights original = block;
    const BlockStatistics seen = statistics;
    auto changes =
        SearchScales(Context(&pool_), {.num_steps = 3, .max_rows = max_rows}, &block, &statistics);
    ASSERT_TRUE(changes.ok()) << changes.status();
    for (const SiteChange& change : *changes) {
      const InputStatistics& inputs = StatisticsOf(change.site, seen);
      const auto consumers = ConsumersOf(change.site, original);
      const std::vector<float> ones(static_cast<size_t>(inputs.k), 1.0F);
      EXPECT_NEAR(change.before.total(), PlainError(consumers, inputs, GetParam(), ones).total(),
                  1e-2 * change.before.total());
      EXPECT_NEAR(
          change.after.total(),
          PlainError(consumers, inputs, GetParam(), change.scale.empty() ? ones : change.scale)
              .total(),
          1e-2 * change.after.total());
      EXPECT_EQ(change.after.total() < change.before.total(), !change.scale.empty());
    }
  }
}

TEST_P(AwqTest, TakesOnlyTheSitesItIsTold) {
  const BlockWeights original = block_;
  EqualizationContext context = Context(&pool_);
  context.sites = {false, true, false, false};
  auto changes = SearchScales(context, {.num_steps = 4}, &block_, &statistics_);
  ASSERT_TRUE(changes.ok()) << changes.status();
  ASSERT_EQ(changes->size(), 1U);
  EXPECT_EQ(changes->front().site, Site::kO);
  EXPECT_EQ(block_.input_norm, original.input_norm);
  EXPECT_EQ(block_.gate.weight, original.gate.weight);
  EXPECT_EQ(block_.down.weight, original.down.weight);
}

TEST_P(AwqTest, ThreadsDoNotChangeABit) {
  BlockWeights other_block = block_;
  BlockStatistics other_statistics = statistics_;
  ThreadPool four(4);
  const AwqOptions options = {.num_steps = 5};
  auto a = SearchScales(Context(&pool_), options, &block_, &statistics_);
  auto b = SearchScales(Context(&four), options, &other_block, &other_statistics);
  ASSERT_TRUE(a.ok() && b.ok());
  for (size_t i = 0; i < a->size(); ++i) {
    EXPECT_EQ((*a)[i].scale, (*b)[i].scale);
    EXPECT_EQ((*a)[i].after.total(), (*b)[i].after.total());
  }
  EXPECT_EQ(block_.v.weight, other_block.v.weight);
  EXPECT_EQ(statistics_.down.hessian, other_statistics.down.hessian);
}

// Channels without activations, without weights, and with ones far beyond all others.
TEST_P(AwqTest, DeadChannelsAndOutliersStayFinite) {
  block_.input_norm[0] = 0.0F;
  for (int64_t row = 0; row < block_.down.n; ++row) block_.down.weight[row * block_.down.k] = 0.0F;
  for (int64_t j = 0; j < block_.up.k; ++j) block_.up.weight[j] = 0.0F;
  block_.post_attention_norm[7] = 3e4F;
  statistics_ = StatisticsOfBlock(block_, Settings(), x_, &pool_);
  ASSERT_EQ(statistics_.qkv.abs_max[0], 0.0F);
  ASSERT_EQ(statistics_.down.abs_max[0], 0.0F);
  auto changes = SearchScales(Context(&pool_), {.num_steps = 5}, &block_, &statistics_);
  ASSERT_TRUE(changes.ok()) << changes.status();
  for (const SiteChange& change : *changes) {
    EXPECT_LE(change.after.total(), change.before.total());
    EXPECT_TRUE(std::isfinite(change.after.total()));
  }
  EXPECT_EQ(block_.input_norm[0], 0.0F);
  for (const float y : Output(block_)) ASSERT_TRUE(std::isfinite(y));
}

TEST_P(AwqTest, ABlockOfZerosStaysOne) {
  for (Matrix* matrix :
       {&block_.q, &block_.k, &block_.v, &block_.o, &block_.gate, &block_.up, &block_.down}) {
    std::fill(matrix->weight.begin(), matrix->weight.end(), 0.0F);
  }
  statistics_ = StatisticsOfBlock(block_, Settings(), x_, &pool_);
  auto changes = SearchScales(Context(&pool_), {.num_steps = 3}, &block_, &statistics_);
  ASSERT_TRUE(changes.ok()) << changes.status();
  for (const SiteChange& change : *changes) EXPECT_EQ(change.magnitude, Magnitude::kNone);
}

TEST_P(AwqTest, WhatDoesNotFitIsRefused) {
  const BlockWeights original = block_;
  for (const int num_steps : {0, -1, 1001}) {
    auto changes = SearchScales(Context(&pool_), {.num_steps = num_steps}, &block_, &statistics_);
    EXPECT_EQ(changes.status().code(), absl::StatusCode::kInvalidArgument);
  }
  for (const int64_t max_rows : {0, -5}) {
    auto changes = SearchScales(Context(&pool_), {.max_rows = max_rows}, &block_, &statistics_);
    EXPECT_EQ(changes.status().code(), absl::StatusCode::kInvalidArgument);
  }
  BlockStatistics broken = statistics_;
  broken.down.hessian.clear();
  EXPECT_EQ(SearchScales(Context(&pool_), {.num_steps = 1}, &block_, &broken).status().code(),
            absl::StatusCode::kInvalidArgument);
  broken = statistics_;
  broken.o.samples[3] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(SearchScales(Context(&pool_), {.num_steps = 1}, &block_, &broken).status().code(),
            absl::StatusCode::kInvalidArgument);
  broken = statistics_;
  std::swap(broken.o, broken.qkv);
  broken.o.k = 32;
  EXPECT_EQ(SearchScales(Context(&pool_), {.num_steps = 1}, &block_, &broken).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(block_.input_norm, original.input_norm);
  EXPECT_EQ(block_.o.weight, original.o.weight);
}

INSTANTIATE_TEST_SUITE_P(
    Schemes, AwqTest,
    ::testing::Values(WeightScheme{.group_size = 32}, WeightScheme{.group_size = 64},
                      WeightScheme{.group_size = 32, .folded_scales = false, .activation_bits = 16},
                      WeightScheme{.bits = 8}),
    [](const auto& param_info) {
      return "w" + std::to_string(param_info.param.bits) + "a" +
             std::to_string(param_info.param.activation_bits) + "g" +
             std::to_string(param_info.param.group_size);
    });

}  // namespace
}  // namespace nibble::quantize
