// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/fptq.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

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

constexpr int64_t kNumTokens = 40;
const BlockSizes kSizes = {.hidden = 64, .ffn = 64};

TEST(LogarithmicScaleTest, IsTheRangeOverItsLogarithm) {
  InputStatistics statistics;
  statistics.abs_max = {0.0F, 2.0F, 6.0F, 30.0F, 1e30F};
  const std::vector<float> scale = LogarithmicScale(statistics);
  ASSERT_EQ(scale.size(), 5U);
  EXPECT_EQ(scale[0], 1.0F);
  EXPECT_FLOAT_EQ(scale[1], 1.0F);
  EXPECT_FLOAT_EQ(scale[2], 2.0F);
  EXPECT_FLOAT_EQ(scale[3], 6.0F);
  EXPECT_NEAR(scale[4], 1e30F / 99.66F, 1e25);
}

TEST(ClassifyRangeTest, BoundsAreThePapers) {
  EXPECT_EQ(ClassifyRange(0.0F), RangeClass::kNarrow);
  EXPECT_EQ(ClassifyRange(14.99F), RangeClass::kNarrow);
  EXPECT_EQ(ClassifyRange(15.0F), RangeClass::kMiddle);
  EXPECT_EQ(ClassifyRange(150.0F), RangeClass::kMiddle);
  EXPECT_EQ(ClassifyRange(150.1F), RangeClass::kWide);
}

class FptqTest : public ::testing::Test {
 protected:
  // Ranges: q/k/v in the middle class, gate/up wide.
  FptqTest() : block_(RandomBlock(kSizes, 1)) {
    for (size_t j = 0; j < 64; j += 8) {
      block_.input_norm[j] = 12.0F;
      block_.post_attention_norm[j] = 120.0F;
    }
    Observe();
  }

  void Observe() { statistics_ = StatisticsOfBlock(block_, Settings(), x_, &pool_); }
  BlockSettings Settings() const { return {.attention = kSizes.attention, .rope = &rope_}; }
  std::vector<FptqSite> Run(FptqPolicy policy) {
    const EqualizationContext context = {.shape = kSizes.attention,
                                         .schemes = SchemesOf({.group_size = 32}),
                                         .isa = HostCpuFeatures().Best(),
                                         .pool = &pool_};
    auto sites = EqualizeLogarithmic(context, policy, &block_, &statistics_);
    EXPECT_TRUE(sites.ok()) << sites.status();
    return std::move(sites).value();
  }
  std::vector<float> Output() {
    auto block = FloatBlock::Create(block_, Settings(), Gradient::kNone, &pool_);
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

TEST_F(FptqTest, EqualizesTheMiddleRangeOnly) {
  const BlockWeights original = block_;
  const BlockStatistics seen = statistics_;
  const std::vector<float> before = Output();
  const std::vector<FptqSite> sites = Run(FptqPolicy::kByRange);
  ASSERT_EQ(sites.size(), 4U);
  EXPECT_EQ(sites[0].range_class, RangeClass::kMiddle);
  EXPECT_EQ(sites[2].range_class, RangeClass::kWide);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sites[i].site, kSites[i]);
    EXPECT_EQ(sites[i].equalized, i == 0);
    const auto& abs_max = StatisticsOf(kSites[i], seen).abs_max;
    EXPECT_EQ(sites[i].range, *std::max_element(abs_max.begin(), abs_max.end()));
  }
  EXPECT_EQ(block_.post_attention_norm, original.post_attention_norm);
  EXPECT_EQ(block_.v.bias, original.v.bias);
  EXPECT_EQ(block_.o.weight, original.o.weight);
  // A channel of range a has range log2(2 + a), but for the norm's 8 bits.
  Observe();
  for (size_t j = 0; j < 64; ++j) {
    const float wanted = std::log2(2.0F + seen.qkv.abs_max[j]);
    EXPECT_NEAR(statistics_.qkv.abs_max[j], wanted, 0.005 * wanted) << j;
  }
  const std::vector<float> after = Output();
  // gate * up of wide inputs: sums of thousands that cancel.
  float largest = 0.0F;
  for (const float y : before) largest = std::max(largest, std::abs(y));
  for (size_t i = 0; i < after.size(); ++i) {
    EXPECT_NEAR(after[i], before[i], 1e-5F * largest) << i;
  }
}

TEST_F(FptqTest, NeverRaisesTheErrorUnlessToldTo) {
  int num_worse = 0;
  for (const float outlier : {1.0F, 12.0F, 500.0F}) {
    block_ = RandomBlock(kSizes, 5);
    block_.input_norm[9] = outlier;
    block_.post_attention_norm[9] = outlier;
    Observe();
    for (const FptqSite& site : Run(FptqPolicy::kWhereBetter)) {
      EXPECT_EQ(site.equalized, site.after.total() < site.before.total());
      if (site.after.total() > site.before.total()) ++num_worse;
    }
  }
  EXPECT_GT(num_worse, 0);  // the choice was one
}

TEST_F(FptqTest, ChannelsThatWereNeverActiveKeepTheirWeights) {
  block_.input_norm[2] = 0.0F;
  Observe();
  ASSERT_EQ(statistics_.qkv.abs_max[2], 0.0F);
  const BlockWeights original = block_;
  const std::vector<FptqSite> sites = Run(FptqPolicy::kByRange);
  EXPECT_EQ(sites[0].scale[2], 1.0F);
  for (int64_t row = 0; row < block_.q.n; ++row) {
    const auto i = static_cast<size_t>(row * block_.q.k + 2);
    EXPECT_EQ(block_.q.weight[i], original.q.weight[i]);
  }
}

}  // namespace
}  // namespace nibble::quantize
