// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/load_options.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "client/load/load_test.h"

namespace nibble::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

std::string Violations(const LoadOptions& options) {
  return std::string(options.Validate().message());
}

TEST(LoadOptionsTest, DefaultsAreValid) {
  EXPECT_TRUE(LoadOptions{}.Validate().ok());
  EXPECT_EQ(LoadOptions{}.path(), "/v1/completions");
  EXPECT_EQ((LoadOptions{.backend = "openai-chat"}.path()), "/v1/chat/completions");
  EXPECT_EQ((LoadOptions{.grpc = "a:1", .backend = "openai-chat"}.backend_name()),
            "nibble-grpc-chat");
}

TEST(LoadOptionsTest, ViolationsAreListedTogether) {
  const std::string text = Violations({.url = "localhost",
                                       .headers = {"no-value"},
                                       .max_concurrency = -1,
                                       .num_warmups = -2,
                                       .goodput = {"itl:5"},
                                       .percentile_metrics = "ttft,speed",
                                       .metric_percentiles = {99, 101}});
  EXPECT_THAT(text, HasSubstr("--url: 'localhost' is not an address"));
  EXPECT_THAT(text, HasSubstr("--header 'no-value': want NAME=VALUE"));
  EXPECT_THAT(text, HasSubstr("--max-concurrency is -1, want 0 to 1000000"));
  EXPECT_THAT(text, HasSubstr("--num-warmups is -2"));
  EXPECT_THAT(text, HasSubstr("--goodput 'itl:5': want ttft:MS"));
  EXPECT_THAT(text, HasSubstr("--percentile-metrics 'speed'"));
  EXPECT_THAT(text, HasSubstr("--metric-percentiles is 101, want 0 to 100"));
}

TEST(LoadOptionsTest, WhatDoesNotGoTogether) {
  EXPECT_THAT(Violations({.backend = "vllm"}), HasSubstr("want openai or openai-chat"));
  EXPECT_THAT(Violations({.endpoint = "/v1/chat/completions"}),
              HasSubstr("does not go with --backend openai"));
  EXPECT_THAT(Violations({.endpoint = "v1"}), HasSubstr("want a path"));
  EXPECT_THAT(Violations({.grpc = "http://a:1"}), HasSubstr("want HOST:PORT"));
  EXPECT_THAT(Violations({.grpc = "a:1", .endpoint = "/v1/completions"}),
              HasSubstr("--endpoint goes with --url"));
  EXPECT_THAT(
      Violations({.dataset = {.name = "timed-trace", .path = "t"}, .arrival = {.request_rate = 3}}),
      HasSubstr("--no-self-timed"));
  EXPECT_THAT(Violations({.self_timed = false}), HasSubstr("--no-self-timed goes with"));
  EXPECT_THAT(Violations({.headers = {"a b=c"}}), HasSubstr("--header"));
  EXPECT_THAT(Violations({.headers = {"a=c\r\nd: e"}}), HasSubstr("--header"));
  EXPECT_THAT(Violations({.headers = {"Content-Length=3"}}), HasSubstr("is set for each request"));
  EXPECT_TRUE((LoadOptions{.headers = {"x!=3"}}.Validate().ok()));
  // gRPC aborts on these.
  EXPECT_THAT(Violations({.grpc = "a:1", .headers = {"x!=3"}}), HasSubstr("no such name"));
  EXPECT_THAT(Violations({.grpc = "a:1", .headers = {"grpc-a=3"}}), HasSubstr("no such name"));
  EXPECT_TRUE((LoadOptions{.grpc = "a:1", .headers = {"X-A.b_c=3"}}.Validate().ok()));
  EXPECT_THAT(Violations({.metadata = {"duration=1"}}), HasSubstr("have a key of that name"));
  EXPECT_THAT(Violations({.metadata = {"mean_ttft_ms=1"}}), HasSubstr("have a key of that name"));
  EXPECT_THAT(Violations({.metadata = {"p99_ttft_ms=1"}}), HasSubstr("have a key of that name"));
  EXPECT_THAT(Violations({.metadata = {"p99.9_client_queue_time_ms=1"}}),
              HasSubstr("have a key of that name"));
  EXPECT_THAT(Violations({.metadata = {"end_times=1"}}), HasSubstr("have a key of that name"));
  EXPECT_TRUE((LoadOptions{.metadata = {"tp=4", "p_ms=1", "pod_ttft_ms=1"}}.Validate().ok()));
  EXPECT_THAT(Violations({.security = {.api_key = "k"}, .headers = {"authorization=Bearer x"}}),
              HasSubstr("--header Authorization and --api-key"));
  EXPECT_TRUE((LoadOptions{.headers = {"authorization=Bearer x"}}.Validate().ok()));
  EXPECT_THAT(Violations({.security = {.insecure = true}}), HasSubstr("https://"));
  EXPECT_TRUE((LoadOptions{.url = "https://a", .security = {.insecure = true}}.Validate().ok()));
  EXPECT_TRUE((LoadOptions{.grpc = "a:1", .security = {.insecure = true}}.Validate().ok()));
  EXPECT_THAT(Violations({.url = "http://a:65536"}), HasSubstr("is not an address"));
  for (const char* grpc : {"a:65536", "a:0", "a:x", "a:", ":1"}) {
    EXPECT_THAT(Violations({.grpc = grpc}), HasSubstr("want HOST:PORT, a port from 1 to 65535"));
  }
  EXPECT_THAT(Violations({.dataset = {.num_prompts = 10'000'000, .random_input_len = 1},
                          .arrival = {.request_rate = 1e-4}}),
              HasSubstr("the limit is 1000000000"));
  EXPECT_THAT(Violations({.sampling = {.top_p = 1.5}}), HasSubstr("--top-p is 1.5, want 0 to 1"));
  EXPECT_THAT(Violations({.sampling = {.temperature = NAN}}), HasSubstr("--temperature is nan"));
}

TEST(LoadOptionsTest, PairsAreParsed) {
  const LoadOptions options{.headers = {"x-a=b=c"}, .goodput = {"ttft:12.5", "e2el:0"}};
  ASSERT_TRUE(options.Validate().ok()) << options.Validate();
  EXPECT_THAT(ParseGoodput(options).limits, ElementsAre(Pair("e2el", 0.0), Pair("ttft", 12.5)));
  EXPECT_THAT(ParseHttp(options)->headers, ElementsAre(Pair("x-a", "b=c")));
}

TEST(SweepOptionsTest, OneListIsWanted) {
  const auto violations = [](const SweepOptions& options) {
    return std::string(options.Validate().message());
  };
  EXPECT_THAT(violations({}), HasSubstr("want --request-rates or --max-concurrencies"));
  EXPECT_THAT(violations({.request_rates = {1}, .max_concurrencies = {1}}),
              HasSubstr("want --request-rates or --max-concurrencies"));
  EXPECT_THAT(violations({.max_concurrencies = {0}}), HasSubstr("--max-concurrencies is 0"));
  EXPECT_THAT(
      violations({.load = {.dataset = {.num_prompts = 1'000'000}}, .request_rates = {1e-4}}),
      HasSubstr("the limit is 1000000000"));
  EXPECT_THAT(violations({.request_rates = {-1}}), HasSubstr("--request-rate is -1"));
  EXPECT_THAT(violations({.load = {.max_concurrency = 4}, .max_concurrencies = {1}}),
              HasSubstr("want one of them"));
  EXPECT_EQ(violations({.load = {.max_concurrency = 4}, .request_rates = {1, 2}}), "");
}

}  // namespace
}  // namespace nibble::client
