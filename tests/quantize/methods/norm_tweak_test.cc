// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/norm_tweak.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

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

TEST(MomentLossTest, IsItsEquation) {
  // Two channels, two tokens. Channel 0: means 2 and 2.5, variances 1 and 0.25; channel 1 equal.
  const std::vector<float> reference = {1.0F, 5.0F, 3.0F, 7.0F};
  const std::vector<float> quantized = {2.0F, 5.0F, 3.0F, 7.0F};
  std::vector<float> gradient;
  EXPECT_DOUBLE_EQ(MomentLoss(reference, quantized, 2, nullptr), (0.5 + 0.75) / 2.0);
  EXPECT_DOUBLE_EQ(MomentLoss(reference, quantized, 2, &gradient), (0.5 + 0.75) / 2.0);
  // 1/4 (sign(+0.5) + 2 sign(-0.75) (y - 2.5))
  EXPECT_EQ(gradient, (std::vector<float>{0.25F * (1.0F + 1.0F), 0.0F, 0.0F, 0.0F}));
}

TEST(MomentLossTest, GradientIsTheSlope) {
  Random random(1);
  constexpr int64_t kHidden = 5;
  const std::vector<float> reference = random.Normals(7 * kHidden);
  std::vector<float> quantized = random.Normals(7 * kHidden);
  std::vector<float> gradient;
  MomentLoss(reference, quantized, kHidden, &gradient);
  for (size_t i = 0; i < quantized.size(); ++i) {
    const float y = quantized[i];
    quantized[i] = y + 0x1p-10F;
    const double above = MomentLoss(reference, quantized, kHidden, nullptr);
    quantized[i] = y - 0x1p-10F;
    const double below = MomentLoss(reference, quantized, kHidden, nullptr);
    quantized[i] = y;
    EXPECT_NEAR(gradient[i], (above - below) / 0x1p-9, 1e-4) << i;
  }
}

class NormTweakTest : public ::testing::Test {
 protected:
  static constexpr int64_t kPositions = 24;

  NormTweakTest() {
    BlockWeights rounded = weights_;
    for (Matrix* matrix : {&rounded.q, &rounded.k, &rounded.v, &rounded.o, &rounded.gate,
                           &rounded.up, &rounded.down}) {
      auto quantized = QuantizeRtnMatrix(matrix->weight.data(), matrix->n, matrix->k,
                                         {.group_size = matrix->k}, &pool_);
      EXPECT_TRUE(quantized.ok()) << quantized.status();
      matrix->weight = Dequantize(*quantized);
    }
    rounded_ = rounded;
  }

  FloatBlock Create(const BlockWeights& weights, int activation_bits, Gradient gradient) {
    auto block = FloatBlock::Create(weights,
                                    {.attention = sizes_.attention,
                                     .activation_bits = activation_bits,
                                     .rope = &rope_,
                                     .isa = HostCpuFeatures().Best()},
                                    gradient, &pool_);
    EXPECT_TRUE(block.ok()) << block.status();
    return std::move(block).value();
  }
  BlockInputs Inputs(size_t num_sequences) const {
    BlockInputs inputs = {.x = x_.data()};
    for (size_t i = 0; i < num_sequences; ++i) {
      inputs.sequence_lengths.push_back(i % 3 == 2 ? kPositions / 2 : kPositions);
    }
    return inputs;
  }

  ThreadPool pool_{1};
  const BlockSizes sizes_ = {.biases = true, .qk_norms = true};
  const kernels::RopeTable rope_ = MakeRope(sizes_, kPositions);
  const BlockWeights weights_ = RandomBlock(sizes_, 1);
  BlockWeights rounded_;
  // A mean and a deviation per channel of their own, as residual streams have.
  std::vector<float> x_ = [this] {
    Random random(2);
    const std::vector<float> means = random.Normals(sizes_.hidden);
    std::vector<float> x = random.Normals(32 * kPositions * sizes_.hidden);
    for (size_t i = 0; i < x.size(); ++i) x[i] += means[i % means.size()];
    return x;
  }();
};

TEST_F(NormTweakTest, LowersTheLossOfSequencesItDidNotLearnFrom) {
  const FloatBlock reference = Create(weights_, 16, Gradient::kNone);
  FloatBlock quantized = Create(rounded_, 8, Gradient::kNorms);
  const BlockNorms before = quantized.norms;
  const NormTweakOptions options = {.learning_rate = 1e-3};
  auto result = TweakNorms(reference, Inputs(24), 0, options, &quantized, &pool_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->kept);
  EXPECT_LT(result->loss_after, 0.97 * result->loss_before);
  // Sequences 7, 15 and 23 judge.
  double loss = 0.0;
  const BlockInputs inputs = Inputs(24);
  const float* x = inputs.x;
  for (size_t i = 0; i < 24; ++i) {
    BlockTrace wanted;
    BlockTrace got;
    ASSERT_TRUE(reference.Forward(x, inputs.sequence_lengths[i], &wanted, &pool_).ok());
    ASSERT_TRUE(quantized.Forward(x, inputs.sequence_lengths[i], &got, &pool_).ok());
    x += inputs.sequence_lengths[i] * sizes_.hidden;
    if (i % 8 == 7) loss += MomentLoss(wanted.y, got.y, sizes_.hidden, nullptr) / 3.0;
  }
  EXPECT_NEAR(result->loss_after, loss, 1e-12);
  // 21 steps of Adam: each norm moved by at most about a learning rate a step, and all kinds moved.
  for (const auto member :
       {&BlockNorms::input, &BlockNorms::post_attention, &BlockNorms::q, &BlockNorms::k}) {
    EXPECT_NE(quantized.norms.*member, before.*member);
    for (size_t i = 0; i < (before.*member).size(); ++i) {
      EXPECT_NEAR((quantized.norms.*member)[i], (before.*member)[i], 21 * 1.1e-3);
    }
  }
}

TEST_F(NormTweakTest, KeepsTheNormsWhenTheLossDoesNotFall) {
  const FloatBlock reference = Create(weights_, 16, Gradient::kNone);
  FloatBlock quantized = Create(rounded_, 8, Gradient::kNorms);
  // Far too fast; not at all; and nothing to mend.
  for (const double learning_rate : {1.0, 0.0}) {
    auto result =
        TweakNorms(reference, Inputs(9), 0, {.learning_rate = learning_rate}, &quantized, &pool_);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_FALSE(result->kept) << learning_rate;
    EXPECT_GE(result->loss_after, result->loss_before);
    EXPECT_EQ(quantized.norms.input, rounded_.input_norm);
    EXPECT_EQ(quantized.norms.post_attention, rounded_.post_attention_norm);
    EXPECT_EQ(quantized.norms.q, rounded_.q_norm);
    EXPECT_EQ(quantized.norms.k, rounded_.k_norm);
  }
  FloatBlock same = Create(weights_, 16, Gradient::kNorms);
  auto result = TweakNorms(reference, Inputs(3), 0, {.learning_rate = 1e-3}, &same, &pool_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->loss_before, 0.0);
  EXPECT_FALSE(result->kept);
}

TEST_F(NormTweakTest, LaterLayersLearnFaster) {
  const FloatBlock reference = Create(weights_, 16, Gradient::kNone);
  const auto moved = [&](int64_t layer_idx, double growth) {
    FloatBlock quantized = Create(rounded_, 16, Gradient::kNorms);
    auto result = TweakNorms(reference, Inputs(1), layer_idx,
                             {.learning_rate = 1e-4, .layer_growth = growth, .num_layers = 4},
                             &quantized, &pool_);
    EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->kept);
    return std::abs(quantized.norms.input[0] - rounded_.input_norm[0]);
  };
  // The first step of Adam is one learning rate, whatever the gradient.
  EXPECT_NEAR(moved(0, 2.0), 1e-4, 1e-6);
  EXPECT_NEAR(moved(2, 2.0), 2e-4, 1e-6);
  EXPECT_NEAR(moved(2, 0.0), 1e-4, 1e-6);
}

TEST_F(NormTweakTest, ThreadsDoNotChangeABit) {
  const FloatBlock reference = Create(weights_, 16, Gradient::kNone);
  std::vector<BlockNorms> norms;
  std::vector<double> losses;
  for (const int num_threads : {1, 4}) {
    ThreadPool pool(num_threads);
    FloatBlock quantized = Create(rounded_, 8, Gradient::kNorms);
    auto result = TweakNorms(reference, Inputs(8), 0, {.learning_rate = 1e-3}, &quantized, &pool);
    ASSERT_TRUE(result.ok()) << result.status();
    norms.push_back(quantized.norms);
    losses.push_back(result->loss_after);
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(norms[0].input, norms[1].input);
  EXPECT_EQ(norms[0].k, norms[1].k);
}

TEST_F(NormTweakTest, WhatDoesNotFitIsRefused) {
  const FloatBlock reference = Create(weights_, 16, Gradient::kNone);
  FloatBlock quantized = Create(rounded_, 16, Gradient::kNorms);
  const auto refused = [&](const BlockInputs& inputs, int64_t layer_idx,
                           const NormTweakOptions& options) {
    EXPECT_EQ(TweakNorms(reference, inputs, layer_idx, options, &quantized, &pool_).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(quantized.norms.input, rounded_.input_norm);
  };
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const double rate : {-1e-5, 1.5, kNan}) refused(Inputs(2), 0, {.learning_rate = rate});
  for (const double growth : {-1.0, 101.0, kNan}) refused(Inputs(2), 0, {.layer_growth = growth});
  refused(Inputs(2), 1, {.num_layers = 1});
  refused(Inputs(2), -1, {.num_layers = 1});
  refused(Inputs(2), 0, {.num_layers = 0});
  refused(Inputs(0), 0, {});
  refused({.x = x_.data(), .sequence_lengths = {4, 0}}, 0, {});
  refused({.x = x_.data(), .sequence_lengths = {4, kPositions + 1}}, 0, {});
}

}  // namespace
}  // namespace nibble::quantize
