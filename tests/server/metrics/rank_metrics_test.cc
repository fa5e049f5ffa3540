// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/rank_metrics.h"

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

TEST(RankMetricsTest, RanksAreUpWhenTheGroupIsFormed) {
  RankMetrics metrics("stories", {0, 0, 1, 1});
  EXPECT_THAT(metrics.Serialize(),
              HasSubstr(R"(nibble:rank_up{model_name="stories",node="1",rank="2"} 0)"));
  metrics.OnFormed(1);
  const std::string text = metrics.Serialize();
  EXPECT_THAT(text, HasSubstr(R"(nibble:rank_up{model_name="stories",node="1",rank="2"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(nibble:group_formations_total{model_name="stories"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(nibble:group_generation{model_name="stories"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(nibble:outage_seconds_total{model_name="stories"} 0)"));
}

TEST(RankMetricsTest, AnOutageIsCountedOnceHoweverManyRanksAreLost) {
  FakeClock clock;
  RankMetrics metrics("stories", {0, 0}, {}, &clock);
  metrics.OnFormed(1);
  clock.now_ns = 1'000'000'000;
  metrics.OnLost(1, "killed");
  clock.now_ns = 2'000'000'000;
  metrics.OnLost(0, "silent");
  clock.now_ns = 3'000'000'000;
  // While it lasts, too.
  EXPECT_THAT(metrics.Serialize(), HasSubstr(R"(outage_seconds_total{model_name="stories"} 2)"));
  clock.now_ns = 4'500'000'000;
  metrics.OnFormed(2);
  clock.now_ns = 9'000'000'000;
  const std::string text = metrics.Serialize();
  EXPECT_THAT(text, HasSubstr(R"(outage_seconds_total{model_name="stories"} 3.5)"));
  EXPECT_THAT(
      text,
      HasSubstr(R"(rank_losses_total{model_name="stories",node="0",rank="1",reason="killed"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(nibble:group_generation{model_name="stories"} 2)"));
}

TEST(RankMetricsTest, AGroupThatBreaksIsAnOutageWithoutALoss) {
  FakeClock clock;
  RankMetrics metrics("stories", {0, 0}, {}, &clock);
  metrics.OnBroken();  // at the start: none
  clock.now_ns = 1'000'000'000;
  metrics.OnFormed(1);
  metrics.OnBroken();
  clock.now_ns = 2'000'000'000;
  metrics.OnFormed(2);
  EXPECT_THAT(metrics.Serialize(), HasSubstr(R"(outage_seconds_total{model_name="stories"} 1)"));
}

TEST(RankMetricsTest, ALostRankIsDown) {
  RankMetrics metrics("stories", {0, 0});
  metrics.OnFormed(1);
  metrics.OnLost(1, "killed");
  const std::string text = metrics.Serialize();
  EXPECT_THAT(text, HasSubstr(R"(nibble:rank_up{model_name="stories",node="0",rank="1"} 0)"));
  EXPECT_THAT(text, HasSubstr(R"(nibble:rank_up{model_name="stories",node="0",rank="0"} 1)"));
}

TEST(RankMetricsTest, LossesAreCountedFromZero) {
  RankMetrics metrics("stories", {0, 1}, {"killed", "silent"});
  const std::string of_rank =
      R"(nibble:rank_losses_total{model_name="stories",node="1",rank="1",reason=)";
  EXPECT_THAT(metrics.Serialize(), HasSubstr(of_rank + R"("silent"} 0)"));
  metrics.OnLost(1, "silent");
  const std::string text = metrics.Serialize();
  EXPECT_THAT(text, HasSubstr(of_rank + R"("silent"} 1)"));
  EXPECT_THAT(text, HasSubstr(of_rank + R"("killed"} 0)"));
}

TEST(RankMetricsTest, TheAllReduceIsToldAsLabels) {
  RankMetrics metrics("stories", {0, 0});
  EXPECT_THAT(metrics.Serialize(), Not(HasSubstr("all_reduce_info{")));
  metrics.SetAllReduce({{"65536", "one-shot", "float32"}, {"+Inf", "two-shot", "int4 g128"}});
  EXPECT_THAT(
      metrics.Serialize(),
      HasSubstr(
          R"(algorithm="two-shot",codec="int4 g128",model_name="stories",up_to_bytes="+Inf"} 1)"));
}

}  // namespace
}  // namespace nibble::server
