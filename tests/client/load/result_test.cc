// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/result.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "client/load/load_options.h"

namespace nibble::client {
namespace {

using nlohmann::ordered_json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using State = RequestRecord::State;

constexpr int64_t kMs = 1'000'000;

// One request that was answered, one that failed, one that was interrupted.
RunOutcome Outcome() {
  RunOutcome outcome;
  RequestRecord completed{
      .state = State::kCompleted, .start_ns = 5 * kMs, .chunk_ns = {105 * kMs, 125 * kMs}};
  completed.ready_ns = 4 * kMs;
  completed.end_ns = 130 * kMs;
  completed.prompt_tokens = 7;
  completed.output_tokens = 2;
  completed.finish_reason = "length";
  RequestRecord failed{.state = State::kFailed, .start_ns = 10 * kMs, .error = "HTTP 500"};
  failed.ready_ns = 10 * kMs;
  failed.end_ns = 310 * kMs;
  failed.prompt_length = 5;
  RequestRecord interrupted{
      .state = State::kInterrupted, .start_ns = 10 * kMs, .chunk_ns = {400 * kMs}};
  interrupted.ready_ns = 10 * kMs;
  interrupted.end_ns = 500 * kMs;
  outcome.records = {completed, failed, interrupted};
  outcome.duration_ns = 500 * kMs;
  outcome.cpu_seconds = 0.05;
  outcome.wake_delays_ns = {kMs / 10, kMs / 5};
  outcome.num_resends = 3;
  return outcome;
}

ordered_json Build(const LoadOptions& options = {}) {
  return BuildResult(options, {.date = "20261122-180327", .model = "m", .num_prompts = 4},
                     Outcome());
}

TEST(ResultTest, KeysOfVllm) {
  const ordered_json result = Build();
  for (const char* key :
       {"date", "backend", "model_id", "num_prompts", "request_rate", "burstiness",
        "max_concurrency", "duration", "completed", "failed", "total_input_tokens",
        "total_output_tokens", "request_throughput", "request_goodput", "output_throughput",
        "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"}) {
    EXPECT_TRUE(result.contains(key)) << key;
  }
  for (const char* metric : {"ttft", "tpot", "itl", "e2el"}) {
    for (const char* statistic : {"mean", "median", "std", "p99"}) {
      const std::string key = std::string(statistic) + "_" + metric + "_ms";
      EXPECT_TRUE(result.contains(key)) << key;
    }
  }
  EXPECT_EQ(result["request_rate"], "inf");
  EXPECT_TRUE(result["max_concurrency"].is_null());
  EXPECT_TRUE(result["request_goodput"].is_null());
  EXPECT_DOUBLE_EQ(result["request_throughput"].get<double>(), 2);
  EXPECT_DOUBLE_EQ(result["output_throughput"].get<double>(), 4);
  EXPECT_DOUBLE_EQ(result["total_token_throughput"].get<double>(), 18);
  EXPECT_DOUBLE_EQ(result["mean_ttft_ms"].get<double>(), 100);
  EXPECT_DOUBLE_EQ(result["mean_e2el_ms"].get<double>(), 120);
  EXPECT_DOUBLE_EQ(result["max_send_delay_ms"].get<double>(), 1);
  EXPECT_DOUBLE_EQ(result["client_cpu"].get<double>(), 0.1);
}

TEST(ResultTest, DetailsHaveAnEntryForEachRequestThatEnded) {
  ordered_json result = Build();
  EXPECT_EQ(result["ttfts"].dump(), "[0.1,0.0,0.0]");
  EXPECT_EQ(result["itls"].dump(), "[[0.02],[],[]]");
  EXPECT_EQ(result["output_lens"].dump(), "[2,0,0]");
  EXPECT_EQ(result["input_lens"].dump(), "[7,5,0]");
  EXPECT_EQ(result["errors"].dump(), "[\"\",\"HTTP 500\",\"interrupted\"]");
  EXPECT_EQ(result["start_times"].dump(), "[0.005,0.01,0.01]");
  EXPECT_EQ(result["end_times"].dump(), "[0.13,0.31,0.5]");
  EXPECT_EQ(result["finish_reasons"].dump(), "[\"length\",\"\",\"\"]");
  EXPECT_EQ(result["error_counts"].dump(), "[{\"error\":\"HTTP 500\",\"count\":1}]");
  RemoveDetails(&result);
  EXPECT_FALSE(result.contains("itls"));
  EXPECT_EQ(
      BuildResult(
          {}, {.date = "20261122-180327", .model = "m", .num_prompts = 4, .with_details = false},
          Outcome()),
      result);
  EXPECT_TRUE(result.contains("error_counts"));
}

TEST(ResultTest, WhatIsSelected) {
  const ordered_json result = Build({.arrival = {.request_rate = 3},
                                     .max_concurrency = 8,
                                     .goodput = {"ttft:100"},
                                     .percentile_metrics = "itl,client_queue_time",
                                     .metric_percentiles = {50, 99.9},
                                     .metadata = {"tp=4"}});
  EXPECT_FALSE(result.contains("mean_ttft_ms"));
  EXPECT_TRUE(result.contains("p99.9_itl_ms"));
  EXPECT_TRUE(result.contains("p50_client_queue_time_ms"));
  EXPECT_EQ(result["tp"], "4");
  EXPECT_EQ(result["request_rate"], 3.0);
  EXPECT_EQ(result["max_concurrency"], 8);
  EXPECT_DOUBLE_EQ(result["request_goodput"].get<double>(), 2);
}

TEST(ResultTest, TheBlockShowsTheSame) {
  const std::string block = FormatBlock(Build({.metric_percentiles = {50, 99.9}}));
  EXPECT_THAT(block, HasSubstr("============ Serving Benchmark Result ============\n"));
  EXPECT_THAT(block, HasSubstr("Successful requests:                     1         \n"));
  EXPECT_THAT(block, HasSubstr("Failed requests:                         1         \n"));
  EXPECT_THAT(block, HasSubstr("Request throughput (req/s):              2.00      \n"));
  EXPECT_THAT(block, HasSubstr("---------------Time to First Token----------------\n"));
  EXPECT_THAT(block, HasSubstr("Mean TTFT (ms):                          100.00    \n"));
  EXPECT_THAT(block, HasSubstr("P99.9 E2EL (ms):                         120.00    \n"));
  EXPECT_THAT(block, HasSubstr("Interrupted requests:                    1         \n"));
  EXPECT_THAT(block, HasSubstr("     1 x HTTP 500\n"));
  EXPECT_THAT(block, Not(HasSubstr("goodput")));
}

TEST(ResultTest, AClientThatIsSlowIsTold) {
  ordered_json result = {{"p99_send_delay_ms", 4.9},
                         {"median_ttft_ms", 50},
                         {"p99_receive_delay_ms", 0.9},
                         {"median_itl_ms", 2}};
  EXPECT_THAT(Warnings(result), IsEmpty());
  result["p99_send_delay_ms"] = 5.1;  // more than a tenth
  EXPECT_THAT(Warnings(result), ElementsAre(HasSubstr("it sent 5.1 ms late (p99)")));
  result["p99_send_delay_ms"] = 0;
  result["p99_receive_delay_ms"] = 1.1;  // more than the least that counts
  EXPECT_THAT(Warnings(result), ElementsAre(HasSubstr("it received 1.1 ms late (p99)")));
  result["p99_receive_delay_ms"] = 0;
  result["client_cpu"] = 0.97;
  EXPECT_THAT(Warnings(result), ElementsAre(HasSubstr("97 % of its core")));
  EXPECT_THAT(Warnings({{"failed", 1}, {"requests_without_usage", 2}}),
              ElementsAre(HasSubstr("2 answers came without usage"), HasSubstr("failed")));
}

TEST(ResultTest, ErrorsDoNothingToATerminal) {
  RunOutcome outcome = Outcome();
  outcome.records[1].error = "\x1b[2Jx" + std::string(1000, 'y');
  const std::string block = FormatBlock(BuildResult({}, {}, outcome));
  EXPECT_THAT(block, HasSubstr(" [2Jxyyy"));
  EXPECT_THAT(block, Not(HasSubstr("\x1b")));
  EXPECT_THAT(block, HasSubstr("yyy...\n"));
}

TEST(ResultTest, RequestsThatWereSentTwiceAreTold) {
  const ordered_json result = Build();
  EXPECT_EQ(result["resent_requests"], 3);
  EXPECT_THAT(Warnings(result), ::testing::Contains(HasSubstr("3 requests were sent twice")));
}

TEST(ResultTest, NothingMeasuredIsNoFigure) {
  const ordered_json result = BuildResult({}, {}, {});
  EXPECT_EQ(result["request_throughput"], 0.0);
  EXPECT_EQ(result["completed"], 0);
  EXPECT_THAT(FormatBlock(result), HasSubstr("Successful requests:"));
}

}  // namespace
}  // namespace nibble::client
