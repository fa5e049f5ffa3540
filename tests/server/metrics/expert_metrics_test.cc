// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/expert_metrics.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class FakeClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns; }
  int64_t now_ns = 0;
};

// Layer 0 is dense; experts 0 and 1 are on rank 0, 2 and 3 on rank 1.
ExpertMetricsConfig Config() {
  return {.model_name = "mix\"tral",
          .is_moe_layer = {false, true},
          .layout = engine::ExpertLayout::Uniform(2, 4),
          .num_expert_ranks = 2};
}

engine::ExpertLoad Load(std::vector<uint64_t> second_layer) {
  engine::ExpertLoad load{.num_layers = 2, .num_experts = 4, .tokens = {0, 0, 0, 0}};
  load.tokens.insert(load.tokens.end(), second_layer.begin(), second_layer.end());
  return load;
}

std::string Balance(const std::string& value) {
  return R"(nibble:moe_balancedness{model_name="mix\"tral",layer="1"} )" + value + "\n";
}

TEST(ExpertMetricsTest, CountersOfLayersWithExperts) {
  ExpertMetrics metrics(Config());
  const std::string text = metrics.Serialize(Load({5, 0, 7, 8}));
  EXPECT_THAT(
      text,
      HasSubstr(
          R"(nibble:moe_expert_tokens_total{model_name="mix\"tral",layer="1",expert="2"} 7)"));
  EXPECT_THAT(text, Not(HasSubstr(R"(layer="0")")));
  EXPECT_THAT(text, HasSubstr("# TYPE nibble:moe_expert_tokens_total counter\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE nibble:moe_balancedness gauge\n"));
}

TEST(ExpertMetricsTest, SeriesAreThereBeforeAnythingIsCounted) {
  ExpertMetrics metrics(Config());
  const std::string text = metrics.Serialize({});
  EXPECT_THAT(text, HasSubstr(R"(layer="1",expert="3"} 0)"));
  EXPECT_THAT(text, HasSubstr(Balance("1")));
}

TEST(ExpertMetricsTest, TooManySeriesAreLeftOut) {
  ExpertMetricsConfig config = Config();
  config.max_series = 3;  // of 4
  ExpertMetrics metrics(config);
  EXPECT_FALSE(metrics.has_counters());
  const std::string text = metrics.Serialize(Load({1, 1, 1, 1}));
  EXPECT_THAT(text, Not(HasSubstr("moe_expert_tokens_total")));
  EXPECT_THAT(text, HasSubstr(Balance("1")));
}

TEST(ExpertMetricsTest, BalanceIsOfTheTokensOfLate) {
  FakeClock clock;
  ExpertMetrics metrics(Config(), &clock);
  clock.now_ns = 1;  // in the first window: as far as it got
  EXPECT_THAT(metrics.Serialize(Load({3, 0, 1, 0})), HasSubstr(Balance("0.6666666666666666")));
  clock.now_ns = ExpertMetrics::kWindowNs;
  EXPECT_THAT(metrics.Serialize(Load({4, 0, 4, 0})), HasSubstr(Balance("1")));
  // A second scraper just after the first one sees the window that is over.
  clock.now_ns += 1;
  EXPECT_THAT(metrics.Serialize(Load({4, 0, 4, 2})), HasSubstr(Balance("1")));
  clock.now_ns += ExpertMetrics::kWindowNs;
  EXPECT_THAT(metrics.Serialize(Load({4, 0, 4, 8})), HasSubstr(Balance("0.5")));
  // Idle: what was last.
  clock.now_ns += 5 * ExpertMetrics::kWindowNs;
  EXPECT_THAT(metrics.Serialize(Load({4, 0, 4, 8})), HasSubstr(Balance("0.5")));
}

TEST(ExpertMetricsTest, CopiesShareTheLoad) {
  ExpertMetricsConfig config = Config();
  // Expert 0 in slots 0 and 3 (one on each rank), expert 1, 2, 3 once.
  config.layout = {.num_experts = 4,
                   .num_slots = 6,
                   .expert_of_slot = {0, 1, 2, 0, 3, 1,  //
                                      0, 1, 2, 0, 3, 1}};
  ExpertMetrics metrics(config);
  EXPECT_THAT(metrics.Serialize(Load({8, 0, 0, 0})), HasSubstr(Balance("1")));
}

TEST(ExpertMetricsTest, AnOlderLoadThatComesLateSaysNothing) {
  FakeClock clock;
  ExpertMetrics metrics(Config(), &clock);
  clock.now_ns = ExpertMetrics::kWindowNs;
  metrics.Serialize(Load({100, 100, 100, 100}));
  clock.now_ns *= 2;
  EXPECT_THAT(metrics.Serialize(Load({90, 90, 0, 0})), HasSubstr(Balance("1")));
  EXPECT_THAT(metrics.Serialize(Load({102, 102, 100, 100})), HasSubstr(Balance("0.5")));
}

}  // namespace
}  // namespace nibble::server
