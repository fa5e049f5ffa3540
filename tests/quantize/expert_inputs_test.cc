// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/expert_inputs.h"

#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "quantize/block_quantizer.h"
#include "quantize/block_runner.h"
#include "tests/quantize/methods/block_data.h"
#include "tests/testing/random.h"

namespace nibble::quantize {
namespace {

using nibble::testing::Random;
using testing::BlockSizes;
using testing::RandomBlock;
using testing::StatisticsOfRows;

constexpr int64_t kNumTokens = 60;

// What float_moe.h, written apart, sends to every expert, and what is in the middle of it there.
class ExpertInputsTest : public ::testing::Test {
 protected:
  ExpertInputsTest() : rows_(Random(5).Normals(kNumTokens * sizes_.hidden)) {
    auto moe = FloatMoe::Create(*block_.moe, {}, &pool_);
    EXPECT_TRUE(moe.ok()) << moe.status();
    y_ = moe->Forward(rows_, kNumTokens, &trace_, &pool_);
  }

  ExpertInputs Inputs(int64_t min_tokens) {
    ExpertInputs inputs(*block_.moe, {.num_tokens = kNumTokens, .min_tokens = min_tokens}, &pool_);
    inputs.Add(rows_.data(), 20);
    inputs.Add(rows_.data() + 20 * sizes_.hidden, kNumTokens - 20);
    EXPECT_TRUE(inputs.Route(*block_.moe).ok());
    return inputs;
  }

  static void ExpectStatistics(const InputStatistics& got, const std::vector<float>& rows) {
    const InputStatistics expected = StatisticsOfRows(rows, got.k);
    EXPECT_EQ(got.num_tokens, expected.num_tokens);
    ASSERT_EQ(got.hessian.size(), expected.hessian.size());
    for (size_t i = 0; i < got.hessian.size(); ++i) {
      EXPECT_NEAR(got.hessian[i], expected.hessian[i], 1e-4);
    }
    for (size_t i = 0; i < got.abs_max.size(); ++i) {
      EXPECT_NEAR(got.abs_max[i], expected.abs_max[i], 1e-5);
    }
  }

  ThreadPool pool_{2};
  const BlockSizes sizes_ = {.experts = 3, .experts_per_tok = 2, .shared_ffn = 24};
  const BlockWeights block_ = RandomBlock(sizes_, 3);
  std::vector<float> rows_;
  std::vector<float> y_;
  MoeTrace trace_;
};

TEST_F(ExpertInputsTest, AreOfTheTokensThatGoThere) {
  ExpertInputs inputs = Inputs(1);
  for (size_t e = 0; e < 3; ++e) {
    const auto statistics = inputs.StatisticsOf(e, block_.moe->experts[e]);
    ASSERT_TRUE(statistics.ok()) << statistics.status();
    const std::vector<int64_t>& places = trace_.experts[e].places;
    EXPECT_EQ(statistics->num_tokens, static_cast<int64_t>(places.size()));
    EXPECT_LT(statistics->num_tokens, kNumTokens);
    EXPECT_FALSE(statistics->all_tokens);
    std::vector<float> rows;
    for (const int64_t place : places) {
      const auto row = rows_.begin() + place / 2 * sizes_.hidden;
      rows.insert(rows.end(), row, row + sizes_.hidden);
    }
    ExpectStatistics(statistics->gate_up, rows);
    ExpectStatistics(statistics->down, trace_.experts[e].network.down_input);
  }
  const auto shared = inputs.StatisticsOf(3, block_.moe->experts[3]);
  ASSERT_TRUE(shared.ok());
  EXPECT_EQ(shared->num_tokens, kNumTokens);
  EXPECT_FALSE(shared->all_tokens);
  ExpectStatistics(shared->gate_up, rows_);
  ExpectStatistics(shared->down, trace_.experts[3].network.down_input);
}

TEST_F(ExpertInputsTest, TooFewTokensAreAll) {
  std::vector<int64_t> counts;
  for (size_t e = 0; e < 3; ++e) {
    counts.push_back(static_cast<int64_t>(trace_.experts[e].places.size()));
  }
  const int64_t most = *std::max_element(counts.begin(), counts.end());
  ExpertInputs inputs = Inputs(most);
  for (size_t e = 0; e < 3; ++e) {
    const auto statistics = inputs.StatisticsOf(e, block_.moe->experts[e]);
    ASSERT_TRUE(statistics.ok());
    EXPECT_EQ(statistics->num_tokens, counts[e]);
    EXPECT_EQ(statistics->all_tokens, counts[e] < most);
    EXPECT_EQ(statistics->gate_up.num_tokens, counts[e] < most ? kNumTokens : counts[e]);
    if (counts[e] < most) ExpectStatistics(statistics->gate_up, rows_);
  }
}

TEST_F(ExpertInputsTest, TheRunnerComputesTheMixture) {
  for (const Isa isa : {Isa::kRef, *ChooseIsa()}) {
    auto runner = MoeRunner::Create(*block_.moe, 16, isa, &pool_);
    ASSERT_TRUE(runner.ok()) << runner.status();
    for (const FeedForward& expert : block_.moe->experts) {
      ASSERT_TRUE(runner->AddExpert(expert, &pool_).ok());
    }
    std::vector<float> y(y_.size());
    runner->Run(rows_.data(), kNumTokens, y.data(), &pool_);
    for (size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], y_[i], 1e-5) << i;
    // A token by itself: the same bits.
    std::vector<float> one(static_cast<size_t>(sizes_.hidden));
    runner->Run(rows_.data() + 7 * sizes_.hidden, 1, one.data(), &pool_);
    EXPECT_TRUE(std::equal(one.begin(), one.end(), y.begin() + 7 * sizes_.hidden));
  }
}

}  // namespace
}  // namespace nibble::quantize
