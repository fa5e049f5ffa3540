// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/sampling/top_tokens.h"
#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using ::nibble::testing::Random;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

int32_t Choose(std::vector<float> logits, const SamplingRow& row) {
  return SampleRow(logits, row).token_id;
}

// How often each token comes up in `count` draws.
std::vector<int> Histogram(const std::vector<float>& logits, SamplingRow row, int count) {
  std::vector<int> histogram(logits.size(), 0);
  for (int i = 0; i < count; ++i) {
    row.output_index = i;
    ++histogram[static_cast<size_t>(Choose(logits, row))];
  }
  return histogram;
}

// Pearson's statistic of observed counts against probabilities.
double ChiSquare(const std::vector<int>& observed, const std::vector<double>& probabilities) {
  const double count = std::accumulate(observed.begin(), observed.end(), 0.0);
  double statistic = 0.0;
  for (size_t i = 0; i < observed.size(); ++i) {
    const double expected = probabilities[i] * count;
    if (expected == 0.0) {
      if (observed[i] != 0) return kInfinity;
      continue;
    }
    statistic += std::pow(observed[i] - expected, 2.0) / expected;
  }
  return statistic;
}

std::vector<double> Softmax(const std::vector<float>& logits, double temperature = 1.0) {
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp(static_cast<double>(logit) / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

std::vector<float> LogitsOf(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

std::set<int32_t> Support(const std::vector<float>& logits, const SamplingRow& row,
                          int count = 2000) {
  std::set<int32_t> support;
  const std::vector<int> histogram = Histogram(logits, row, count);
  for (size_t i = 0; i < histogram.size(); ++i) {
    if (histogram[i] > 0) support.insert(static_cast<int32_t>(i));
  }
  return support;
}

TEST(TopTokensTest, AgreesWithSortingEverything) {
  Random random(1);
  for (const int64_t size : {1, 5, 100, 513, 5000}) {
    std::vector<float> logits;
    // Few distinct values: many ties.
    for (int64_t i = 0; i < size; ++i) logits.push_back(static_cast<float>(random.Int(-9, 9)));
    if (size > 3) {
      logits[1] = kNaN;
      logits[2] = -kInfinity;
    }
    std::vector<Candidate> sorted;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] > -kInfinity) sorted.push_back({logits[i], static_cast<int32_t>(i)});
    }
    std::sort(sorted.begin(), sorted.end(), RanksBefore);
    EXPECT_EQ(FindBest(logits).token_id, sorted[0].token_id);
    for (const size_t count : {size_t{1}, size_t{2}, size_t{20}, size_t{600}, size_t{6000}}) {
      const std::vector<Candidate> top = FindTop(logits, count);
      ASSERT_EQ(top.size(), std::min(count, sorted.size()));
      for (size_t i = 0; i < top.size(); ++i) {
        ASSERT_EQ(top[i].token_id, sorted[i].token_id) << "size " << size << " count " << count;
      }
    }
  }
}

TEST(GreedyTest, TakesTheLargestAndTheLowestIdOfTies) {
  EXPECT_EQ(Choose({1.0F, 3.0F, 2.0F}, {.temperature = 0.0F}), 1);
  EXPECT_EQ(Choose({1.0F, 3.0F, 3.0F}, {.temperature = 0.0F}), 1);
  std::vector<float> wide(5000, -1.0F);
  wide[4321] = 2.0F;
  wide[4999] = 2.0F;
  EXPECT_EQ(Choose(wide, {.temperature = 0.0F}), 4321);
}

TEST(GreedyTest, NaNNeverWins) {
  EXPECT_EQ(Choose({kNaN, -3.0F, kNaN, -2.0F}, {.temperature = 0.0F}), 3);
  EXPECT_EQ(Choose({kNaN, kNaN}, {.temperature = 0.0F}), 0);
  EXPECT_EQ(Choose({-kInfinity, -kInfinity, kNaN}, {.temperature = 0.0F}), 0);
  EXPECT_EQ(Choose({kNaN, kInfinity, 1.0F}, {.temperature = 0.0F}), 1);
}

TEST(SampleRowTest, ARowWithoutAFiniteLogitIsReported) {
  const SamplingRow rows[] = {{.temperature = 0.0F},
                              {.temperature = 1.0F},
                              {.top_p = 0.5F, .logprobs = 3},
                              {.temperature = 0.0F, .logit_bias = {{1, 5.0F}}}};
  for (const SamplingRow& row : rows) {
    std::vector<float> wide(3000, kNaN);
    EXPECT_TRUE(SampleRow(wide, row).no_finite_logit);
    std::vector<float> infinite = {-kInfinity, kNaN, kInfinity};
    EXPECT_TRUE(SampleRow(infinite, row).no_finite_logit);
    std::vector<float> last(3000, kNaN);
    last.back() = -5.0F;
    const SampledToken token = SampleRow(last, row);
    EXPECT_FALSE(token.no_finite_logit);
    EXPECT_EQ(token.token_id, 2999);
  }
  // What the request bans itself is no fault of the model's.
  std::vector<float> banned = {1.0F, 2.0F};
  const SampledToken token = SampleRow(banned, {.temperature = 0.0F, .banned_token_ids = {0, 1}});
  EXPECT_FALSE(token.no_finite_logit);
  EXPECT_EQ(token.token_id, 0);
}

TEST(RandomTest, StrangeLogitsNeverLeaveTheRow) {
  for (const SamplingRow& row : {SamplingRow{}, SamplingRow{.top_p = 0.5F}, SamplingRow{.top_k = 2},
                                 SamplingRow{.top_p = 1e-9F, .min_p = 1.0F}}) {
    EXPECT_EQ(Support({kNaN, -2.0F, kNaN}, row), std::set<int32_t>{1});
    EXPECT_EQ(Support({kNaN, -kInfinity}, row), std::set<int32_t>{0});
    EXPECT_EQ(Support({1e38F, kInfinity, kNaN, 0.0F}, row), std::set<int32_t>{1});
    EXPECT_EQ(Support({-3e38F, 3e38F, 0.0F}, row), std::set<int32_t>{1});
  }
  EXPECT_EQ(Support({kInfinity, 1.0F, kInfinity}, {}), (std::set<int32_t>{0, 2}));
  std::vector<float> none;
  EXPECT_EQ(SampleRow(none, {}).token_id, 0);
}

TEST(RandomTest, FollowsTheDistribution) {
  Random random(5);
  const std::vector<float> logits = random.Normals(40, 1.5F);
  for (const float temperature : {0.5F, 1.0F, 2.0F}) {
    const auto histogram = Histogram(logits, {.temperature = temperature, .seed = 9}, 40000);
    // 39 degrees of freedom: mean 39, deviation 8.8; 84 is passed once in 30 000 experiments.
    EXPECT_LT(ChiSquare(histogram, Softmax(logits, static_cast<double>(temperature))), 84.0)
        << temperature;
  }
}

// The draw walks chunks of the row; a row of many chunks with its mass in a few places shows errors
// at their borders.
TEST(RandomTest, FollowsTheDistributionAcrossChunks) {
  std::vector<double> probabilities(3000, 0.0);
  const std::vector<size_t> places = {0, 255, 256, 511, 1700, 2816, 2999};
  for (const size_t place : places) probabilities[place] = 1.0 / 7.0;
  const auto histogram = Histogram(LogitsOf(probabilities), {.seed = 3}, 20000);
  EXPECT_LT(ChiSquare(histogram, probabilities), 30.0);  // 6 degrees of freedom
}

TEST(RandomTest, SameSeedAndIndexSameToken) {
  Random random(6);
  const std::vector<float> logits = random.Normals(1000);
  SamplingRow row{.seed = 77};
  std::set<int32_t> tokens;
  for (row.output_index = 0; row.output_index < 50; ++row.output_index) {
    const int32_t token = Choose(logits, row);
    EXPECT_EQ(token, Choose(logits, row));
    tokens.insert(token);
  }
  EXPECT_GT(tokens.size(), 30U);
}

TEST(RandomTest, TinyTemperatureIsGreedy) {
  EXPECT_EQ(Support({1.0F, 1.001F, 0.5F}, {.temperature = 1e-40F}), std::set<int32_t>{1});
  EXPECT_EQ(Support({1000.0F, 1001.0F, 5.0F}, {.temperature = 1e-5F}), std::set<int32_t>{1});
}

TEST(TruncationTest, TopKKeepsExactlyK) {
  const std::vector<float> logits = {1.0F, 4.0F, 2.0F, 3.0F, 2.0F};
  EXPECT_EQ(Support(logits, {.top_k = 1}), std::set<int32_t>{1});
  EXPECT_EQ(Support(logits, {.top_k = 2}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Support(logits, {.top_k = 3}), (std::set<int32_t>{1, 2, 3}));  // tie: the lower id
  EXPECT_EQ(Support(logits, {.top_k = 5}).size(), 5U);
  EXPECT_EQ(Support(logits, {.top_k = 0}).size(), 5U);
}

TEST(TruncationTest, TopPKeepsTheSmallestSetThatReachesIt) {
  const std::vector<float> logits = LogitsOf({0.1, 0.4, 0.2, 0.25, 0.05});
  EXPECT_EQ(Support(logits, {.top_p = 1e-6F}), std::set<int32_t>{1});
  EXPECT_EQ(Support(logits, {.top_p = 0.39F}), std::set<int32_t>{1});
  EXPECT_EQ(Support(logits, {.top_p = 0.41F}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Support(logits, {.top_p = 0.64F}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Support(logits, {.top_p = 0.66F}), (std::set<int32_t>{1, 2, 3}));
  EXPECT_EQ(Support(logits, {.top_p = 0.94F}), (std::set<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(Support(logits, {.top_p = 0.97F}).size(), 5U);
}

TEST(TruncationTest, TopPReachesFarIntoAFlatTail) {
  // The best token has half the mass, the rest is spread over a tail e^-9 below it: the bar for
  // gathering candidates has to sink twice.
  std::vector<float> logits(8104, -9.0F);
  logits[5000] = 0.0F;
  const double total = 1.0 + 8103.0 * std::exp(-9.0);
  EXPECT_EQ(Support(logits, {.top_p = static_cast<float>(0.99 / total)}, 50),
            std::set<int32_t>{5000});
  const auto histogram = Histogram(logits, {.top_p = 0.75F}, 600);
  const auto num_kept = static_cast<int32_t>(std::ceil((0.75 * total - 1.0) * std::exp(9.0)));
  for (size_t i = 0; i < histogram.size(); ++i) {
    if (i == 5000 || static_cast<int32_t>(i) <= num_kept + 2) continue;
    ASSERT_EQ(histogram[i], 0) << i;
  }
  EXPECT_NEAR(histogram[5000] / 600.0, 1.0 / (0.75 * total), 0.08);
}

// Against sorting everything: many ties, so that the cut often falls among equals.
TEST(TruncationTest, TopPKeepsWhatSortingWouldKeep) {
  Random random(31);
  for (int round = 0; round < 40; ++round) {
    std::vector<float> logits;
    const bool is_flat = round % 4 == 0;
    const int64_t size = random.Int(1, is_flat ? 12 : 150);
    const int64_t spread = is_flat ? 0 : random.Int(1, 30);
    for (int64_t i = 0; i < size; ++i) {
      logits.push_back(static_cast<float>(random.Int(-spread, 0)) * 0.25F);
    }
    const std::vector<double> p = Softmax(logits);
    std::vector<size_t> order(p.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    const float top_p = 0.02F + 0.024F * static_cast<float>(round);
    std::set<int32_t> kept;
    double mass = 0.0;
    for (const size_t id : order) {
      if (mass >= static_cast<double>(top_p)) break;
      mass += p[id];
      kept.insert(static_cast<int32_t>(id));
    }
    const std::set<int32_t> support = Support(logits, {.top_p = top_p, .seed = 5}, 300);
    for (const int32_t id : support) EXPECT_TRUE(kept.contains(id)) << id << ", round " << round;
    // 300 draws miss one of 12 equals once in 10^11 experiments.
    if (is_flat) {
      EXPECT_EQ(support, kept) << "round " << round;
    }
  }
}

TEST(TruncationTest, TopPOfAFlatRowKeepsItsShareOfTheLowestIds) {
  const std::vector<float> logits(6'000, 1.5F);
  const auto histogram = Histogram(logits, {.top_p = 0.5F, .seed = 2}, 300);
  int low = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (histogram[i] > 0) {
      EXPECT_LE(i, 3'000U);
    }
    if (i < 1'500) low += histogram[i];
  }
  EXPECT_NEAR(low, 150, 45);  // half of the draws; 8.7 is one deviation
}

TEST(TruncationTest, MinPIsRelativeToTheBest) {
  const std::vector<float> logits = LogitsOf({0.1, 0.4, 0.2, 0.25, 0.05});
  EXPECT_EQ(Support(logits, {.min_p = 0.6F}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Support(logits, {.min_p = 0.45F}), (std::set<int32_t>{1, 2, 3}));
  EXPECT_EQ(Support(logits, {.min_p = 1.0F}), std::set<int32_t>{1});
  // After temperature: at 2 the ratios are square roots, 0.25/0.4 -> 0.79.
  EXPECT_EQ(Support(logits, {.temperature = 2.0F, .min_p = 0.75F}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Support(logits, {.temperature = 0.5F, .min_p = 0.75F}), std::set<int32_t>{1});
}

TEST(TruncationTest, TheyCombineInOrder) {
  const std::vector<float> logits = LogitsOf({0.1, 0.4, 0.2, 0.25, 0.05});
  // top_k leaves {0.4, 0.25, 0.2}, of which the first two hold 0.76.
  EXPECT_EQ(Support(logits, {.top_p = 0.75F, .top_k = 3}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(Support(logits, {.top_p = 0.77F, .top_k = 3}), (std::set<int32_t>{1, 2, 3}));
  // min_p leaves the first two, of which the first holds 0.615.
  EXPECT_EQ(Support(logits, {.top_p = 0.6F, .min_p = 0.6F}), std::set<int32_t>{1});
  EXPECT_EQ(Support(logits, {.top_p = 0.63F, .min_p = 0.6F}), (std::set<int32_t>{1, 3}));
  // What is kept is drawn in proportion.
  const auto histogram = Histogram(logits, {.top_p = 0.9F, .top_k = 3, .seed = 1}, 20000);
  EXPECT_LT(ChiSquare(histogram, {0.0, 0.4 / 0.85, 0.2 / 0.85, 0.25 / 0.85, 0.0}), 20.0);
}

TEST(AdjustTest, BiasAndBans) {
  EXPECT_EQ(Choose({1.0F, 2.0F, 3.0F}, {.temperature = 0.0F, .logit_bias = {{0, 2.5F}}}), 0);
  EXPECT_EQ(Choose({1.0F, 2.0F, 3.0F}, {.temperature = 0.0F, .banned_token_ids = {2}}), 1);
  EXPECT_EQ(Choose({1.0F, 2.0F, 3.0F}, {.temperature = 0.0F,
                                        .logit_bias = {{2, 100.0F}, {-1, 5.0F}, {99, 5.0F}},
                                        .banned_token_ids = {2, -7, 3}}),
            1);
}

std::vector<float> Adjusted(std::vector<float> logits, SamplingRow row) {
  row.temperature = 0.0F;
  SampleRow(logits, row);
  return logits;
}

TEST(AdjustTest, Penalties) {
  const std::vector<float> logits = {2.0F, -2.0F, 4.0F, -4.0F, 1.0F};
  EXPECT_THAT(Adjusted(logits, {.repetition_penalty = 2.0F,
                                .prompt_token_ids = {0, 1, 0},
                                .output_token_ids = {3, 1}}),
              ElementsAre(1.0F, -4.0F, 4.0F, -8.0F, 1.0F));
  EXPECT_THAT(Adjusted(logits, {.presence_penalty = 0.5F,
                                .prompt_token_ids = {0},
                                .output_token_ids = {2, 3, 2, 99, -1}}),
              ElementsAre(2.0F, -2.0F, 3.5F, -4.5F, 1.0F));
  EXPECT_THAT(Adjusted(logits, {.frequency_penalty = 0.25F,
                                .prompt_token_ids = {0},
                                .output_token_ids = {2, 3, 2}}),
              ElementsAre(2.0F, -2.0F, 3.5F, -4.25F, 1.0F));
  // Bias first, then repetition, then what is subtracted.
  EXPECT_THAT(Adjusted(logits, {.repetition_penalty = 2.0F,
                                .presence_penalty = 1.0F,
                                .frequency_penalty = -0.5F,
                                .logit_bias = {{4, 3.0F}},
                                .output_token_ids = {4, 4, 4}}),
              ElementsAre(2.0F, -2.0F, 4.0F, -4.0F, 2.5F));
}

TEST(LogprobsTest, OfTheRawDistribution) {
  std::vector<float> logits = LogitsOf({0.1, 0.4, 0.2, 0.25, 0.05});
  const SampledToken token = SampleRow(
      logits,
      {.temperature = 0.0F, .logprobs = 3, .logit_bias = {{2, 50.0F}}, .banned_token_ids = {1}});
  EXPECT_EQ(token.token_id, 2);
  EXPECT_EQ(token.logprobs.sampled.token_id, 2);
  EXPECT_NEAR(token.logprobs.sampled.logprob, std::log(0.2), 1e-6);
  EXPECT_EQ(token.logprobs.sampled.rank, 3);
  ASSERT_EQ(token.logprobs.top.size(), 3U);
  const std::vector<int32_t> ids = {1, 3, 2};
  const std::vector<double> p = {0.4, 0.25, 0.2};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(token.logprobs.top[i].token_id, ids[i]);
    EXPECT_NEAR(token.logprobs.top[i].logprob, std::log(p[i]), 1e-6);
    EXPECT_EQ(token.logprobs.top[i].rank, static_cast<int32_t>(i) + 1);
  }
}

TEST(LogprobsTest, CountsAsAskedFor) {
  std::vector<float> logits = {1.0F, 1.0F, 1.0F, kNaN, -kInfinity};
  SampledToken token = SampleRow(logits, {.temperature = 0.0F, .logprobs = 0});
  EXPECT_NEAR(token.logprobs.sampled.logprob, -std::log(3.0), 1e-6);
  EXPECT_THAT(token.logprobs.top, IsEmpty());
  // Ties rank by id, in the list and for the sampled token alike; what has no mass is not listed.
  token = SampleRow(logits, {.temperature = 0.0F, .logprobs = 5, .banned_token_ids = {0}});
  EXPECT_EQ(token.logprobs.sampled.token_id, 1);
  EXPECT_EQ(token.logprobs.sampled.rank, 2);
  ASSERT_EQ(token.logprobs.top.size(), 3U);
  EXPECT_EQ(token.logprobs.top[2].token_id, 2);
  EXPECT_EQ(SampleRow(logits, {.temperature = 0.0F}).logprobs.sampled.rank, 0);
}

TEST(LogprobsTest, SumToOneOverALargeVocabulary) {
  Random random(8);
  std::vector<float> logits = random.Normals(128256, 3.0F);
  for (float& logit : logits) logit += 500.0F;
  const std::vector<double> expected = [&] {
    std::vector<float> shifted = logits;
    for (float& logit : shifted) logit -= 500.0F;
    return Softmax(shifted);
  }();
  const SampledToken token = SampleRow(logits, {.temperature = 0.0F, .logprobs = 20});
  double previous = 0.0;
  for (const TokenLogprob& top : token.logprobs.top) {
    const double p = expected[static_cast<size_t>(top.token_id)];
    EXPECT_NEAR(top.logprob, std::log(p), 2e-6);
    EXPECT_LE(top.logprob, previous);
    previous = static_cast<double>(top.logprob);
  }
}

TEST(SampleRowsTest, DoesNotDependOnThreadsNeighboursOrInstructionSet) {
  Random random(9);
  constexpr int64_t kVocab = 3001;
  std::vector<SamplingRow> rows;
  for (int i = 0; i < 37; ++i) {
    SamplingRow& row = rows.emplace_back();
    row.temperature = i % 5 == 0 ? 0.0F : 0.3F * static_cast<float>(i % 4 + 1);
    row.top_p = i % 3 == 0 ? 0.9F : 1.0F;
    row.top_k = i % 4 == 0 ? 40 : 0;
    row.min_p = i % 6 == 0 ? 0.05F : 0.0F;
    row.seed = static_cast<uint64_t>(i);
    row.logprobs = i % 7 == 0 ? 4 : -1;
    row.frequency_penalty = i % 2 == 0 ? 0.5F : 0.0F;
    row.output_token_ids = {1, 2, 3, 2};
  }
  const std::vector<float> logits = random.Normals(kVocab * 37, 2.0F);
  std::vector<float> one_copy = logits;
  std::vector<float> four_copy = logits;
  ThreadPool one(1);
  ThreadPool four(4);
  const StepOutput a = SampleRows(one_copy.data(), kVocab, rows, &one);
  const StepOutput b = SampleRows(four_copy.data(), kVocab, rows, &four);
  std::vector<float> best_copy = logits;
  const StepOutput best =
      SampleRows(best_copy.data(), kVocab, rows, &one, HostCpuFeatures().Best());
  ASSERT_EQ(a.tokens.size(), rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<float> alone(logits.begin() + static_cast<ptrdiff_t>(i) * kVocab,
                             logits.begin() + static_cast<ptrdiff_t>(i + 1) * kVocab);
    const SampledToken token = SampleRow(alone, rows[i]);
    EXPECT_EQ(a.tokens[i].token_id, b.tokens[i].token_id);
    EXPECT_EQ(a.tokens[i].token_id, token.token_id);
    EXPECT_EQ(a.tokens[i].token_id, best.tokens[i].token_id);
    EXPECT_EQ(a.tokens[i].logprobs.sampled.logprob, best.tokens[i].logprobs.sampled.logprob);
    EXPECT_EQ(a.tokens[i].logprobs.sampled.logprob, b.tokens[i].logprobs.sampled.logprob);
    EXPECT_EQ(a.tokens[i].logprobs.top.size(), rows[i].logprobs > 0 ? 4U : 0U);
  }
}

}  // namespace
}  // namespace nibble::engine
