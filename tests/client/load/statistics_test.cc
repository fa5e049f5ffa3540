// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/statistics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::client {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;
using State = RequestRecord::State;

constexpr int64_t kMs = 1'000'000;

RequestRecord Completed(int64_t start_ms, const std::vector<int64_t>& chunks_ms, int64_t tokens) {
  RequestRecord record{
      .state = State::kCompleted, .ready_ns = start_ms * kMs, .start_ns = start_ms * kMs};
  for (const int64_t ms : chunks_ms) record.chunk_ns.push_back(ms * kMs);
  record.prompt_tokens = 10;
  record.output_tokens = tokens;
  return record;
}

TEST(SummaryTest, FiguresComputedByHand) {
  const Summary summary = Summarize({4, 1, 3, 2}, {0, 25, 99, 100});
  EXPECT_DOUBLE_EQ(summary.mean, 2.5);
  EXPECT_DOUBLE_EQ(summary.median, 2.5);
  EXPECT_DOUBLE_EQ(summary.stddev, std::sqrt(1.25));
  // Linear between neighbours: place p / 100 * 3.
  EXPECT_THAT(summary.percentiles,
              ElementsAre(Pair(0, 1.0), Pair(25, 1.75), Pair(99, ::testing::DoubleEq(3.97)),
                          Pair(100, 4.0)));
}

TEST(SummaryTest, OneValueAndNone) {
  const Summary one = Summarize({7}, {99});
  EXPECT_EQ(one.median, 7);
  EXPECT_EQ(one.stddev, 0);
  EXPECT_THAT(one.percentiles, ElementsAre(Pair(99, 7.0)));
  const Summary none = Summarize({}, {50, 99});
  EXPECT_EQ(none.mean, 0);
  EXPECT_THAT(none.percentiles, ElementsAre(Pair(50, 0.0), Pair(99, 0.0)));
}

TEST(MetricsTest, LatenciesAsVllmDefinesThem) {
  // Sent at 100 ms, chunks at 150, 160, 190 ms; five tokens: two chunks held more than one.
  const LoadMetrics metrics = ComputeMetrics({Completed(100, {150, 160, 190}, 5)}, {99}, {});
  EXPECT_DOUBLE_EQ(metrics.ttft.mean, 0.050);
  EXPECT_DOUBLE_EQ(metrics.e2el.mean, 0.090);
  EXPECT_DOUBLE_EQ(metrics.tpot.mean, 0.040 / 4);  // by tokens
  EXPECT_DOUBLE_EQ(metrics.itl.mean, 0.020);       // by chunks: 10 and 30 ms
  EXPECT_EQ(metrics.input_tokens, 10);
  EXPECT_EQ(metrics.output_tokens, 5);
  EXPECT_EQ(metrics.num_without_usage, 0);
}

TEST(MetricsTest, WithoutUsagePromptsAreAsLongAsTheyWereMade) {
  RequestRecord record = Completed(0, {10, 20}, -1);
  record.prompt_tokens = -1;
  record.prompt_length = 12;
  const LoadMetrics metrics = ComputeMetrics({record}, {99}, {});
  EXPECT_EQ(metrics.input_tokens, 12);
  EXPECT_EQ(metrics.output_tokens, 2);
  EXPECT_EQ(metrics.num_without_usage, 1);
}

TEST(MetricsTest, ItlPoolsGapsAndTpotIsPerRequest) {
  const LoadMetrics metrics =
      ComputeMetrics({Completed(0, {10, 20, 30, 40}, 4), Completed(0, {10, 50}, 2)}, {99}, {});
  EXPECT_DOUBLE_EQ(metrics.itl.mean, (10 + 10 + 10 + 40) / 4.0 / 1000);
  EXPECT_DOUBLE_EQ(metrics.tpot.mean, (10 + 40) / 2.0 / 1000);
}

TEST(MetricsTest, OneTokenHasNoTpot) {
  const LoadMetrics metrics = ComputeMetrics({Completed(0, {10}, 1), Completed(0, {10, 30}, 2)},
                                             {99}, {.limits = {{"tpot", 15}}});
  EXPECT_DOUBLE_EQ(metrics.tpot.mean, 0.020);
  EXPECT_EQ(metrics.num_good, 1);  // it keeps any limit of tpot
}

TEST(MetricsTest, GoodRequestsKeepEveryLimit) {
  const std::vector<RequestRecord> records = {Completed(0, {10, 20}, 2), Completed(0, {30, 40}, 2),
                                              Completed(0, {10, 90}, 2)};
  const auto good = [&](const std::map<std::string, double>& limits) {
    return ComputeMetrics(records, {99}, {.limits = limits}).num_good;
  };
  EXPECT_EQ(good({{"ttft", 10}}), 2);  // a limit is kept at the limit
  EXPECT_EQ(good({{"ttft", 10}, {"e2el", 20}}), 1);
  EXPECT_EQ(good({{"e2el", 50}}), 2);
  EXPECT_EQ(good({{"tpot", 5}}), 0);
}

TEST(MetricsTest, FailedAndInterruptedRequestsAreInNoLatency) {
  RequestRecord failed = Completed(0, {500}, 100);
  failed.state = State::kFailed;
  failed.error = "HTTP 429: 16 requests wait, the limit is 16";
  RequestRecord also = failed;
  also.error = "HTTP 429: 17 requests wait, the limit is 16";
  RequestRecord other = failed;
  other.error = "cannot connect";
  RequestRecord interrupted = Completed(0, {500}, 100);
  interrupted.state = State::kInterrupted;
  RequestRecord waiting;
  const LoadMetrics metrics = ComputeMetrics(
      {other, failed, Completed(0, {10, 20}, 2), also, interrupted, waiting}, {99}, {});
  EXPECT_EQ(metrics.num_completed, 1);
  EXPECT_EQ(metrics.num_failed, 3);
  EXPECT_EQ(metrics.num_interrupted, 1);
  EXPECT_DOUBLE_EQ(metrics.ttft.mean, 0.010);
  EXPECT_EQ(metrics.output_tokens, 2);
  // The same but for numbers in them.
  EXPECT_THAT(metrics.errors, ElementsAre(Pair(failed.error, 2), Pair(other.error, 1)));
}

TEST(MetricsTest, PeaksOfSecondsAndOfConcurrency) {
  // The first request is sent at 500 ms: seconds are counted from there.
  const LoadMetrics metrics =
      ComputeMetrics({Completed(500, {600, 1400, 1600}, 6), Completed(700, {1450, 1500}, 2),
                      Completed(1600, {1700}, 1)},
                     {99}, {});
  // 500..1499 ms: 2 chunks of 2 tokens and 1 of 1; 1500..2499: 2 + 1 + 1.
  EXPECT_DOUBLE_EQ(metrics.max_output_tokens_per_s, 5);
  EXPECT_EQ(metrics.max_concurrent_requests, 2);  // the first ends as the third begins
}

TEST(MetricsTest, WithoutUsageChunksCount) {
  const LoadMetrics metrics = ComputeMetrics({Completed(0, {10, 20, 30}, -1)}, {99}, {});
  EXPECT_EQ(metrics.output_tokens, 3);
  EXPECT_EQ(metrics.num_without_usage, 1);
}

TEST(MetricsTest, DelaysOfSendingAndWaitingForAPlace) {
  RequestRecord late = Completed(130, {150}, 1);
  late.arrival_ns = 0;
  late.ready_ns = 100 * kMs;
  const LoadMetrics metrics = ComputeMetrics({late}, {99}, {});
  EXPECT_DOUBLE_EQ(metrics.max_send_delay, 0.030);
  EXPECT_DOUBLE_EQ(metrics.queue_time.mean, 0.130);
  EXPECT_DOUBLE_EQ(metrics.e2el_with_queue.mean, 0.150);
}

}  // namespace
}  // namespace nibble::client
