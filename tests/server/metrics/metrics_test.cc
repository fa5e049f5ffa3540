// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/metrics/metrics.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

MetricsConfig Config() {
  return {.model_name = "stories",
          .block_size = 16,
          .max_model_len = 2048,
          .enable_prefix_caching = true,
          .version = "1.2.3",
          .max_num_seqs = 64,
          .max_queued_requests = 1024};
}

TEST(MetricsTest, GaugesFollowTheEngine) {
  Metrics metrics(Config());
  const std::string text = metrics.Serialize(
      {.num_running = 3, .num_waiting = 7, .kv_blocks_total = 100, .kv_blocks_used = 25});
  EXPECT_THAT(text, HasSubstr(R"(vllm:num_requests_running{engine="0",model_name="stories"} 3)"));
  EXPECT_THAT(text, HasSubstr(R"(vllm:num_requests_waiting{engine="0",model_name="stories"} 7)"));
  const std::string by_reason =
      R"(vllm:num_requests_waiting_by_reason{engine="0",model_name="stories",reason=)";
  EXPECT_THAT(text, HasSubstr(by_reason + R"("capacity"} 7)"));
  EXPECT_THAT(text, HasSubstr(by_reason + R"("deferred"} 0)"));
  EXPECT_THAT(text, HasSubstr(R"(vllm:kv_cache_usage_perc{engine="0",model_name="stories"} 0.25)"));
  EXPECT_THAT(text, HasSubstr(R"(finished_reason="abort",model_name="stories"} 0)"));
}

TEST(MetricsTest, TheKvCacheIsToldOnceItIsKnown) {
  Metrics metrics(Config());
  EXPECT_THAT(metrics.Serialize({}), Not(HasSubstr("cache_config_info")));
  metrics.SetKvBlocks(100);
  EXPECT_THAT(metrics.Serialize({}),
              HasSubstr(R"(vllm:cache_config_info{block_size="16",enable_prefix_caching="True",)"
                        R"(engine="0",model_name="stories",num_gpu_blocks="100"} 1)"));
}

TEST(MetricsTest, TheServersStateIsThatOfTheScrape) {
  Metrics metrics(Config());
  const std::string labels = R"({engine="0",model_name="stories"})";
  const std::string text =
      metrics.Serialize({}, {.num_http_connections = 7, .http_buffered_bytes = 4096});
  EXPECT_THAT(text, HasSubstr("nibble:http_connections" + labels + " 7"));
  EXPECT_THAT(text, HasSubstr("nibble:http_buffered_bytes" + labels + " 4096"));
  EXPECT_THAT(text, HasSubstr("nibble:max_num_seqs" + labels + " 64"));
  EXPECT_THAT(text, HasSubstr("nibble:max_queued_requests" + labels + " 1024"));
  EXPECT_THAT(text,
              HasSubstr(R"(nibble:build_info{engine="0",model_name="stories",version="1.2.3"} 1)"));
}

TEST(MetricsTest, StepsThatComputeNothingHaveNoTime) {
  Metrics metrics(Config());
  const std::string count = R"(nibble:step_seconds_count{engine="0",model_name="stories"} )";
  metrics.OnStep({.step_seconds = 0.5});
  EXPECT_THAT(metrics.Serialize({}), HasSubstr(count + "0"));
  metrics.OnStep({.num_generated_tokens = 1, .step_seconds = 0.004});
  EXPECT_THAT(metrics.Serialize({}), HasSubstr(count + "1"));
}

TEST(MetricsTest, AnEmptyPoolIsNotADivisionByZero) {
  Metrics metrics(Config());
  EXPECT_THAT(metrics.Serialize({}), Not(HasSubstr("nan")));
}

TEST(MetricsTest, SequencesLostWithARankAreCountedOnce) {
  Metrics metrics(Config());
  engine::StepStats step;
  for (const int64_t lost_so_far : {0, 3, 3, 5}) {
    step.engine.num_lost_sequences = lost_so_far;
    metrics.OnStep(step);
  }
  EXPECT_THAT(metrics.Serialize({}),
              HasSubstr(R"(nibble:recomputed_sequences_total{engine="0",model_name="stories"} 5)"));
}

TEST(MetricsTest, StepsAndRequestsAreCounted) {
  Metrics metrics(Config());
  engine::StepStats step;
  step.num_prompt_tokens = 12 + 30;  // 30 of them recomputed after a preemption
  step.num_prefilled_tokens = 60;
  step.num_prefilled_cached_tokens = 48;
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
  const std::string by_source =
      R"(vllm:prompt_tokens_by_source_total{engine="0",model_name="stories",source=)";
  EXPECT_THAT(text, HasSubstr(by_source + R"("local_compute"} 12)"));
  EXPECT_THAT(text, HasSubstr(by_source + R"("local_cache_hit"} 48)"));
  EXPECT_THAT(text, HasSubstr("vllm:iteration_tokens_total_sum" + labels + " 46"));
  EXPECT_THAT(text, HasSubstr("vllm:request_prefill_kv_computed_tokens_sum" + labels + " 12"));
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

// The text as its families: type, and for histograms the bucket bounds, by name.
struct Family {
  std::string type;
  std::vector<double> bounds;  // without +Inf, of the first series

  friend bool operator==(const Family&, const Family&) = default;
};

void PrintTo(const Family& family, std::ostream* out) {
  *out << family.type << ' ' << ::testing::PrintToString(family.bounds);
}

std::map<std::string, Family> ParseFamilies(const std::string& text) {
  std::map<std::string, Family> families;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash;
    std::string kind;
    std::string name;
    if (line.starts_with("# TYPE ")) {
      words >> hash >> kind >> name;
      words >> families[name].type;
      continue;
    }
    const size_t suffix = line.find("_bucket{");
    const size_t bound = line.find("le=\"");
    if (suffix == std::string::npos || bound == std::string::npos) continue;
    const double value = std::strtod(line.c_str() + bound + 4, nullptr);
    if (std::isfinite(value)) families[line.substr(0, suffix)].bounds.push_back(value);
  }
  return families;
}

// Dashboards and gateways find these by name: what vLLM calls them, and its bucket bounds.
TEST(MetricsTest, NamesTypesAndBucketsAreThoseDashboardsKnow) {
  const std::vector<double> latency = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                       30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
  const std::vector<double> first_token = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                           0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                           20,    40,    80,   160,  640,  2560};
  const std::vector<double> inter_token = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                           0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
  std::vector<double> fine_inter_token = {0.00025, 0.0005, 0.001,  0.002, 0.003,
                                          0.004,   0.005,  0.0075, 0.015, 0.02};
  fine_inter_token.insert(fine_inter_token.end(), inter_token.begin(), inter_token.end());
  std::sort(fine_inter_token.begin(), fine_inter_token.end());
  const std::vector<double> tokens = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000};
  const std::vector<double> step_tokens = {1,   8,    16,   32,   64,   128,  256,
                                           512, 1024, 2048, 4096, 8192, 16384};
  const std::map<std::string, Family> expected = {
      {"vllm:num_requests_running", {"gauge", {}}},
      {"vllm:num_requests_waiting", {"gauge", {}}},
      {"vllm:num_requests_waiting_by_reason", {"gauge", {}}},
      {"vllm:kv_cache_usage_perc", {"gauge", {}}},
      {"vllm:cache_config_info", {"gauge", {}}},
      {"nibble:build_info", {"gauge", {}}},
      {"nibble:max_num_seqs", {"gauge", {}}},
      {"nibble:max_queued_requests", {"gauge", {}}},
      {"nibble:http_connections", {"gauge", {}}},
      {"nibble:grpc_connections", {"gauge", {}}},
      {"nibble:http_buffered_bytes", {"gauge", {}}},
      {"nibble:step_seconds", {"histogram", fine_inter_token}},
      {"vllm:prompt_tokens_total", {"counter", {}}},
      {"vllm:prompt_tokens_by_source_total", {"counter", {}}},
      {"vllm:prompt_tokens_cached_total", {"counter", {}}},
      {"vllm:generation_tokens_total", {"counter", {}}},
      {"vllm:num_preemptions_total", {"counter", {}}},
      {"nibble:recomputed_sequences_total", {"counter", {}}},
      {"vllm:prefix_cache_queries_total", {"counter", {}}},
      {"vllm:prefix_cache_hits_total", {"counter", {}}},
      {"vllm:request_success_total", {"counter", {}}},
      {"vllm:time_to_first_token_seconds", {"histogram", first_token}},
      {"vllm:inter_token_latency_seconds", {"histogram", fine_inter_token}},
      {"vllm:request_time_per_output_token_seconds", {"histogram", fine_inter_token}},
      {"vllm:e2e_request_latency_seconds", {"histogram", latency}},
      {"vllm:request_queue_time_seconds", {"histogram", latency}},
      {"vllm:request_prefill_time_seconds", {"histogram", latency}},
      {"vllm:request_decode_time_seconds", {"histogram", latency}},
      {"vllm:request_inference_time_seconds", {"histogram", latency}},
      {"vllm:request_prompt_tokens", {"histogram", tokens}},
      {"vllm:request_generation_tokens", {"histogram", tokens}},
      {"vllm:request_prefill_kv_computed_tokens", {"histogram", tokens}},
      {"vllm:request_params_max_tokens", {"histogram", tokens}},
      {"vllm:request_params_n", {"histogram", {1, 2, 5, 10, 20}}},
      {"vllm:iteration_tokens_total", {"histogram", step_tokens}},
      {"grpc_server_handled_total", {"counter", {}}},
      {"grpc_server_handling_seconds", {"histogram", latency}},
      {"http_requests_total", {"counter", {}}},
      {"http_request_duration_seconds", {"histogram", latency}},
  };
  Metrics metrics(Config());
  metrics.OnHttp("/health", "GET", 200, 0.001);
  metrics.OnGrpc("Chat", "OK", 0.001);
  metrics.SetKvBlocks(100);
  EXPECT_THAT(ParseFamilies(metrics.Serialize({})), ::testing::ContainerEq(expected));
}

TEST(MetricsTest, GrpcCallsAreCountedByMethodAndStatus) {
  Metrics metrics(Config());
  metrics.OnGrpc("Chat", "OK", 0.2);
  metrics.OnGrpc("Chat", "OK", 0.4);
  metrics.OnGrpc("Chat", "RESOURCE_EXHAUSTED", 0.001);
  const std::string text = metrics.Serialize({});
  const std::string of_chat = R"(grpc_method="Chat",grpc_service="nibble.v1.Nibble")";
  EXPECT_THAT(text, HasSubstr(R"(grpc_server_handled_total{grpc_code="OK",)" + of_chat + "} 2"));
  EXPECT_THAT(text, HasSubstr(R"({grpc_code="RESOURCE_EXHAUSTED",)" + of_chat + "} 1"));
  EXPECT_THAT(text, HasSubstr("grpc_server_handling_seconds_count{" + of_chat + "} 3"));
}

TEST(MetricsTest, AnInventedMethodIsNoSeriesOfItsOwn) {
  Metrics metrics(Config());
  for (int i = 0; i < 3; ++i) metrics.OnHttp("none", "FOO" + std::to_string(i), 404, 0.001);
  const std::string text = metrics.Serialize({});
  EXPECT_THAT(text, Not(HasSubstr("FOO")));
  EXPECT_THAT(text,
              HasSubstr(R"(http_requests_total{handler="none",method="other",status="404"} 3)"));
}

TEST(MetricsTest, ClientsCannotMakeSeries) {
  Metrics metrics(Config());
  metrics.OnHttp("none", "BREW", 405, 0.001);
  metrics.OnHttp("none", "FOO", 405, 0.001);
  EXPECT_THAT(metrics.Serialize({}),
              HasSubstr(R"(http_requests_total{handler="none",method="other",status="405"} 2)"));
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
