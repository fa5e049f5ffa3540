// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/metrics.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

MetricsConfig Config() {
  return {.model_name = "stories",
          .block_size = 16,
          .num_blocks = 100,
          .max_model_len = 2048,
          .enable_prefix_caching = true};
}

TEST(MetricsTest, GaugesFollowTheEngine) {
  Metrics metrics(Config());
  const std::string text = metrics.Serialize(
      {.num_running = 3, .num_waiting = 7, .kv_blocks_total = 100, .kv_blocks_used = 25});
  EXPECT_THAT(text, HasSubstr(R"(vllm:num_requests_running{engine="0",model_name="stories"} 3)"));
  EXPECT_THAT(text, HasSubstr(R"(vllm:num_requests_waiting{engine="0",model_name="stories"} 7)"));
  EXPECT_THAT(text, HasSubstr(R"(vllm:kv_cache_usage_perc{engine="0",model_name="stories"} 0.25)"));
  EXPECT_THAT(text, HasSubstr("vllm:cache_config_info{block_size=\"16\""));
  EXPECT_THAT(text, HasSubstr(R"(finished_reason="abort",model_name="stories"} 0)"));
}

TEST(MetricsTest, AnEmptyPoolIsNotADivisionByZero) {
  Metrics metrics(Config());
  EXPECT_THAT(metrics.Serialize({}), Not(HasSubstr("nan")));
}

TEST(MetricsTest, StepsAndRequestsAreCounted) {
  Metrics metrics(Config());
  engine::StepStats step;
  step.num_prompt_tokens = 60;
  step.num_generated_tokens = 4;
  step.num_preemptions = 1;
  step.prefix_cache_queries = 64;
  step.prefix_cache_hits = 48;
  step.time_to_first_token_seconds = {0.03};
  step.inter_token_seconds = {0.0007, 0.012};
  metrics.OnStep(step);
  metrics.OnFinished({.reason = engine::FinishReason::kLength,
                      .num_prompt_tokens = 60,
                      .num_cached_tokens = 48,
                      .num_generated_tokens = 5,
                      .max_tokens = 5,
                      .e2e_seconds = 0.4,
                      .decode_seconds = 0.2});
  metrics.OnAdmitted(2);
  metrics.OnHttp("/v1/models", "GET", 200, 0.001);
  const std::string text = metrics.Serialize({});
  const std::string labels = R"({engine="0",model_name="stories"})";
  EXPECT_THAT(text, HasSubstr("vllm:prompt_tokens_total" + labels + " 60"));
  EXPECT_THAT(text, HasSubstr("vllm:generation_tokens_total" + labels + " 4"));
  EXPECT_THAT(text, HasSubstr("vllm:num_preemptions_total" + labels + " 1"));
  EXPECT_THAT(text, HasSubstr("vllm:prefix_cache_hits_total" + labels + " 48"));
  EXPECT_THAT(text, HasSubstr("vllm:prompt_tokens_cached_total" + labels + " 48"));
  EXPECT_THAT(
      text,
      HasSubstr(
          R"(vllm:iteration_tokens_total_bucket{engine="0",model_name="stories",le="64"} 1)"));
  EXPECT_THAT(
      text,
      HasSubstr(
          R"(vllm:inter_token_latency_seconds_bucket{engine="0",model_name="stories",le="0.001"} 1)"));
  EXPECT_THAT(text, HasSubstr("vllm:inter_token_latency_seconds_count" + labels + " 2"));
  EXPECT_THAT(
      text,
      HasSubstr(
          R"(vllm:time_to_first_token_seconds_bucket{engine="0",model_name="stories",le="0.04"} 1)"));
  EXPECT_THAT(text, HasSubstr(R"(finished_reason="length",model_name="stories"} 1)"));
  EXPECT_THAT(text, HasSubstr("vllm:request_time_per_output_token_seconds_count" + labels + " 1"));
  EXPECT_THAT(
      text, HasSubstr(R"(http_requests_total{handler="/v1/models",method="GET",status="200"} 1)"));
}

TEST(MetricsTest, LargeCountersKeepTheirDigits) {
  Metrics metrics(Config());
  engine::StepStats step;
  step.num_generated_tokens = 123'456'789'012;
  metrics.OnStep(step);
  EXPECT_THAT(
      metrics.Serialize({}),
      HasSubstr("vllm:generation_tokens_total{engine=\"0\",model_name=\"stories\"} 123456789012"));
}

}  // namespace
}  // namespace nibble::server
