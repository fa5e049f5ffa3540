// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/equalization.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/float16.h"
#include "tests/quantize/methods/block_data.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::quantize {
namespace {

using nibble::testing::AllWithin;
using nibble::testing::Random;
using testing::BlockSizes;
using testing::MakeRope;
using testing::RandomBlock;
using testing::StatisticsOfBlock;
using testing::StatisticsOfRows;

constexpr int64_t kNumTokens = 12;

// Scales over three decades that the site can take.
std::vector<float> RandomScale(Site site, const BlockSizes& sizes, const BlockWeights& block) {
  Random random(7);
  std::vector<float> scale(static_cast<size_t>(ConsumersOf(site, block).front()->k));
  for (float& s : scale) s = std::exp(random.Uniform(-3.5F, 3.5F));
  FitScale(site, sizes.attention, block, &scale);
  return scale;
}

class EqualizationTest : public ::testing::TestWithParam<Site> {
 protected:
  std::vector<float> Output(const BlockWeights& weights) {
    auto block = FloatBlock::Create(weights, settings_, Gradient::kNone, &pool_);
    EXPECT_TRUE(block.ok()) << block.status();
    BlockTrace trace;
    EXPECT_TRUE(block->Forward(x_.data(), kNumTokens, &trace, &pool_).ok());
    return trace.y;
  }

  ThreadPool pool_{1};
  const BlockSizes sizes_ = {.biases = true, .qk_norms = true};
  const kernels::RopeTable rope_ = MakeRope(sizes_, kNumTokens);
  const BlockSettings settings_ = {.attention = sizes_.attention, .rope = &rope_};
  const std::vector<float> x_ = Random(3).Normals(kNumTokens * sizes_.hidden);
};

TEST_P(EqualizationTest, KeepsTheFunctionOfTheBlock) {
  BlockWeights block = RandomBlock(sizes_, 1);
  const std::vector<float> before = Output(block);
  const std::vector<float> first_consumer = ConsumersOf(GetParam(), block).front()->weight;
  const absl::Status status =
      ApplyScale(GetParam(), sizes_.attention, RandomScale(GetParam(), sizes_, block), &block);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_NE(ConsumersOf(GetParam(), block).front()->weight, first_consumer);
  const std::vector<float> after = Output(block);
  // Every product keeps its value but for two roundings.
  EXPECT_TRUE(AllWithin<float>({after.data(), kNumTokens, sizes_.hidden, sizes_.hidden},
                               {before.data(), kNumTokens, sizes_.hidden, sizes_.hidden},
                               [](int64_t, int64_t) { return 2e-5; }));
}

TEST_P(EqualizationTest, StatisticsAreThoseOfTheScaledBlock) {
  BlockWeights block = RandomBlock(sizes_, 1);
  BlockStatistics statistics = StatisticsOfBlock(block, settings_, x_, &pool_);
  const std::vector<float> scale = RandomScale(GetParam(), sizes_, block);
  InputStatistics& scaled = StatisticsOf(GetParam(), &statistics);
  ASSERT_TRUE(ScaleStatistics(scale, &scaled).ok());
  ASSERT_TRUE(ApplyScale(GetParam(), sizes_.attention, scale, &block).ok());
  const BlockStatistics seen = StatisticsOfBlock(block, settings_, x_, &pool_);
  const InputStatistics& expected = StatisticsOf(GetParam(), seen);
  const int64_t k = expected.k;
  for (int64_t i = 0; i < k; ++i) {
    const auto row = static_cast<size_t>(i);
    EXPECT_NEAR(scaled.abs_max[row], expected.abs_max[row], 1e-5 * expected.abs_max[row]);
    EXPECT_NEAR(scaled.abs_mean[row], expected.abs_mean[row], 1e-5 * expected.abs_mean[row]);
    for (int64_t j = 0; j < k; ++j) {
      const auto index = static_cast<size_t>(i * k + j);
      const double size =
          std::sqrt(expected.hessian[row * static_cast<size_t>(k + 1)] *
                    expected.hessian[static_cast<size_t>(j) * static_cast<size_t>(k + 1)]);
      EXPECT_NEAR(scaled.hessian[index], expected.hessian[index], 1e-5 * size);
    }
    for (int64_t t = 0; t < kNumTokens; ++t) {
      EXPECT_NEAR(scaled.samples[static_cast<size_t>(t * k + i)],
                  expected.samples[static_cast<size_t>(t * k + i)], 1e-5 * expected.abs_max[row]);
    }
  }
}

TEST_P(EqualizationTest, ScalesThatDoNotFitAreRefused) {
  const BlockWeights original = RandomBlock(sizes_, 1);
  BlockWeights block = original;
  InputStatistics statistics =
      StatisticsOfRows(Random(1).Normals(3 * ConsumersOf(GetParam(), block).front()->k),
                       ConsumersOf(GetParam(), block).front()->k);
  std::vector<float> scale = RandomScale(GetParam(), sizes_, block);
  for (const float bad : {0.0F, -1.0F, std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity()}) {
    std::vector<float> broken = scale;
    broken[5] = bad;
    const absl::Status status = ApplyScale(GetParam(), sizes_.attention, broken, &block);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("channel 5"));
    EXPECT_EQ(ScaleStatistics(broken, &statistics).code(), absl::StatusCode::kInvalidArgument);
  }
  scale.push_back(1.0F);
  EXPECT_EQ(ApplyScale(GetParam(), sizes_.attention, scale, &block).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ScaleStatistics(scale, &statistics).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(block.input_norm, original.input_norm);
  for (const Site site : kSites) {
    for (size_t i = 0; i < ConsumersOf(site, block).size(); ++i) {
      EXPECT_EQ(ConsumersOf(site, block)[i]->weight, ConsumersOf(site, original)[i]->weight);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sites, EqualizationTest, ::testing::ValuesIn(kSites),
                         [](const auto& param_info) {
                           return std::string(ToString(param_info.param));
                         });

// An expert in the place of the block's network, as it is while a layer with experts is quantized.
TEST(EqualizeExpertsTest, KeepsTheFunctionAndTheRouting) {
  const BlockSizes sizes = {.experts = 4, .shared_ffn = 24};
  const kernels::RopeTable rope = MakeRope(sizes, kNumTokens);
  const BlockSettings settings = {.attention = sizes.attention, .rope = &rope};
  const std::vector<float> x = Random(3).Normals(kNumTokens * sizes.hidden);
  ThreadPool pool(1);
  const auto run = [&](const BlockWeights& weights) {
    auto block = FloatBlock::Create(weights, settings, Gradient::kNone, &pool);
    EXPECT_TRUE(block.ok()) << block.status();
    BlockTrace trace;
    EXPECT_TRUE(block->Forward(x.data(), kNumTokens, &trace, &pool).ok());
    return trace;
  };
  BlockWeights block = RandomBlock(sizes, 1);
  const BlockTrace before = run(block);
  const MoeWeights original = *block.moe;
  for (const Site site : {Site::kQkv, Site::kO}) {
    ASSERT_TRUE(ApplyScale(site, sizes.attention, RandomScale(site, sizes, block), &block).ok());
  }
  FeedForward& network = block;
  for (FeedForward& expert : block.moe->experts) {
    network = std::move(expert);
    ASSERT_TRUE(
        ApplyScale(Site::kDown, sizes.attention, RandomScale(Site::kDown, sizes, block), &block)
            .ok());
    const std::vector<float> ones(static_cast<size_t>(sizes.hidden), 1.0F);
    EXPECT_EQ(ApplyScale(Site::kGateUp, sizes.attention, ones, &block).code(),
              absl::StatusCode::kInvalidArgument);
    expert = std::exchange(network, {});
  }
  EXPECT_EQ(block.moe->router.weight, original.router.weight);
  EXPECT_NE(block.moe->experts[2].down.weight, original.experts[2].down.weight);
  const BlockTrace after = run(block);
  EXPECT_EQ(after.moe.expert_ids, before.moe.expert_ids);
  EXPECT_TRUE(AllWithin<float>({after.y.data(), kNumTokens, sizes.hidden, sizes.hidden},
                               {before.y.data(), kNumTokens, sizes.hidden, sizes.hidden},
                               [](int64_t, int64_t) { return 2e-5; }));
}

TEST(FitScaleTest, QueryHeadsOfAGroupShareTheirScale) {
  const BlockSizes sizes;  // 4 query heads of 16 channels on 2 value heads
  BlockWeights block = RandomBlock(sizes, 1);
  std::vector<float> scale(64);
  for (size_t j = 0; j < scale.size(); ++j) scale[j] = std::exp2(static_cast<float>(j / 16));
  // Heads 0 and 1 (1, 2) read value head 0; heads 2 and 3 (4, 8) value head 1.
  const absl::Status status = ApplyScale(Site::kO, sizes.attention, scale, &block);
  EXPECT_EQ(std::string(status.message()),
            "channels 0 and 16 share a row of v but have scales 1 and 2");
  FitScale(Site::kO, sizes.attention, block, &scale);
  for (size_t j = 0; j < scale.size(); ++j) {
    EXPECT_FLOAT_EQ(scale[j], j < 32 ? std::sqrt(2.0F) : std::sqrt(32.0F)) << j;
  }
  EXPECT_TRUE(ApplyScale(Site::kO, sizes.attention, scale, &block).ok());
}

TEST(FitScaleTest, NormsDivideToEightBits) {
  const BlockSizes sizes;
  for (const Site site : {Site::kQkv, Site::kGateUp}) {
    BlockWeights block = RandomBlock(sizes, 1);
    std::vector<float>& norm = site == Site::kQkv ? block.input_norm : block.post_attention_norm;
    norm[3] = 0.0F;    // a channel switched off
    norm[4] = 1e-38F;  // as good as
    norm[5] = -0.7F;
    const std::vector<float> original = norm;
    Random random(2);
    std::vector<float> wanted(static_cast<size_t>(sizes.hidden));
    for (float& s : wanted) s = random.Uniform(0.05F, 9.0F);
    std::vector<float> scale = wanted;
    FitScale(site, sizes.attention, block, &scale);
    ASSERT_TRUE(ApplyScale(site, sizes.attention, scale, &block).ok());
    for (size_t j = 0; j < scale.size(); ++j) {
      if (j == 3 || j == 4) {
        EXPECT_EQ(scale[j], 1.0F) << j;
        continue;
      }
      EXPECT_NEAR(scale[j], wanted[j], 0.004 * wanted[j]) << j;
      const float stored = ToFloat(ToBFloat16(norm[j]));
      EXPECT_EQ(stored, norm[j]) << j;
      EXPECT_NEAR(stored * scale[j], original[j], 3e-7 * std::abs(original[j])) << j;
    }
  }
}

TEST(FitScaleTest, ValuesOutOfRangeAreBroughtIn) {
  const BlockSizes sizes;
  const BlockWeights block = RandomBlock(sizes, 1);
  std::vector<float> scale(static_cast<size_t>(sizes.ffn), 2.0F);
  scale[0] = 0.0F;
  scale[1] = std::numeric_limits<float>::quiet_NaN();
  scale[2] = std::numeric_limits<float>::infinity();
  scale[3] = -3.0F;
  scale[4] = 1e30F;
  scale[5] = 1e-30F;
  FitScale(Site::kDown, sizes.attention, block, &scale);
  EXPECT_THAT(std::vector<float>(scale.begin(), scale.begin() + 7),
              ::testing::ElementsAre(1.0F, 1.0F, 1.0F, 1.0F, 0x1p14F, 0x1p-14F, 2.0F));
}

TEST(ValidateBlockTest, EverySizeIsChecked) {
  const BlockSizes sizes = {.biases = true, .qk_norms = true};
  const BlockWeights good = RandomBlock(sizes, 1);
  EXPECT_TRUE(ValidateBlock(sizes.attention, good).ok());
  const auto refused = [&](const char* part, const BlockWeights& block) {
    const absl::Status status = ValidateBlock(sizes.attention, block);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << part;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(part));
  };
  using Member = Matrix BlockWeights::*;
  const std::pair<const char*, Member> members[] = {
      {"q", &BlockWeights::q}, {"k", &BlockWeights::k},   {"v", &BlockWeights::v},
      {"o", &BlockWeights::o}, {"up", &BlockWeights::up}, {"down", &BlockWeights::down}};
  for (const auto& [name, member] : members) {
    BlockWeights block = good;
    (block.*member).n += 1;
    refused(name, block);
    block = good;
    (block.*member).weight.pop_back();
    refused(name, block);
    block = good;
    (block.*member).bias.pop_back();
    refused(name, block);
  }
  for (const auto& [name, member] :
       {std::pair("post_attention_norm", &BlockWeights::post_attention_norm),
        std::pair("q_norm", &BlockWeights::q_norm), std::pair("k_norm", &BlockWeights::k_norm)}) {
    BlockWeights block = good;
    (block.*member).push_back(1.0F);
    refused(name, block);
  }
  for (const AttentionShape& shape :
       {AttentionShape{0, 1, 16}, AttentionShape{4, 0, 16}, AttentionShape{4, 3, 16},
        AttentionShape{4, 2, 0}, AttentionShape{int64_t{1} << 60, 1, 16}}) {
    EXPECT_EQ(ValidateBlock(shape, good).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ValidateStatisticsTest, SizesAndValuesAreChecked) {
  const InputStatistics good = StatisticsOfRows(Random(1).Normals(24), 6);
  EXPECT_TRUE(ValidateStatistics(good).ok());
  const auto refused = [&](const auto& breaks) {
    InputStatistics statistics = good;
    breaks(&statistics);
    EXPECT_EQ(ValidateStatistics(statistics).code(), absl::StatusCode::kInvalidArgument);
  };
  refused([](InputStatistics* s) { s->k = 5; });
  refused([](InputStatistics* s) { s->k = 0; });
  refused([](InputStatistics* s) { s->abs_max.pop_back(); });
  refused([](InputStatistics* s) { s->abs_mean.pop_back(); });
  refused([](InputStatistics* s) { s->hessian.pop_back(); });
  refused([](InputStatistics* s) { s->num_samples = 3; });
  refused([](InputStatistics* s) { s->hessian[7] = NAN; });
  refused([](InputStatistics* s) { s->samples[7] = INFINITY; });
  refused([](InputStatistics* s) { s->abs_max[2] = NAN; });
}

}  // namespace
}  // namespace nibble::quantize
