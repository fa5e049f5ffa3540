// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/step_channel_bench.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::bench {
namespace {

using ::testing::HasSubstr;

class CountingExecutor final : public engine::Executor {
 public:
  engine::ExecutorLimits limits() const override { return {}; }
  absl::Status Begin(const engine::StepPlan& plan) override {
    EXPECT_EQ(plan.num_tokens(), 0);
    return absl::OkStatus();
  }
  absl::StatusOr<engine::StepOutput> Finish() override {
    if (++num_steps == fail_at) return Unavailable("rank 1 is gone");
    return engine::StepOutput{};
  }
  int64_t num_steps = 0;
  int64_t fail_at = -1;
};

TEST(StepChannelBenchTest, EmptyPlansAreTimedAndDecodePlansCoded) {
  CountingExecutor executor;
  const auto report = RunStepChannelBench({.steps = 50, .batches = {1, 3}},
                                          {.executor = &executor, .num_ranks = 4});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(executor.num_steps, 50);
  EXPECT_EQ((*report)["bench"], "step-channel");
  EXPECT_EQ((*report)["ranks"], 4);
  const nlohmann::ordered_json& rows = (*report)["results"];
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0]["plan"], "empty");
  EXPECT_LE(rows[0]["best_us"], rows[0]["median_us"]);
  EXPECT_LE(rows[0]["median_us"], rows[0]["p99_us"]);
  EXPECT_EQ(rows[1]["sequences"], 1);
  EXPECT_EQ(rows[2]["sequences"], 3);
  EXPECT_GT(rows[2]["bytes"], rows[1]["bytes"]);
}

TEST(StepChannelBenchTest, AnErrorEndsIt) {
  CountingExecutor executor;
  executor.fail_at = 3;
  EXPECT_EQ(RunStepChannelBench({.steps = 50}, {.executor = &executor}).status(),
            Unavailable("rank 1 is gone"));
}

TEST(StepChannelBenchTest, OptionsOutOfRangeAreNamed) {
  std::vector<std::string> violations;
  StepChannelBenchOptions{.steps = 0, .pause_us = -1, .batches = {5000}}.Validate(&violations);
  ASSERT_EQ(violations.size(), 3U);
  EXPECT_THAT(violations[0], HasSubstr("--steps"));
  EXPECT_THAT(violations[1], HasSubstr("--pause-us"));
  EXPECT_THAT(violations[2], HasSubstr("--batch"));
}

}  // namespace
}  // namespace nibble::bench
