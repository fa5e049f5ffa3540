// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble::client {
namespace {

using State = RequestRecord::State;

// `values` are sorted and at least one.
double Percentile(const std::vector<double>& values, double percentile) {
  const double place = percentile / 100 * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(std::floor(place));
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (place - std::floor(place));
}

double Tpot(const RequestRecord& record) {
  const int64_t tokens = OutputTokens(record);
  return tokens > 1 ? (record.latency() - record.ttft()) / static_cast<double>(tokens - 1) : 0.0;
}

bool IsGood(const RequestRecord& record, const Goodput& goodput) {
  const std::map<std::string, double> ms = {{"ttft", record.ttft() * 1e3},
                                            {"tpot", Tpot(record) * 1e3},
                                            {"e2el", record.latency() * 1e3}};
  return std::all_of(goodput.limits.begin(), goodput.limits.end(),
                     [&](const auto& limit) { return ms.at(limit.first) <= limit.second; });
}

// Tokens of each second since the first request was sent. A chunk counts as many tokens as the
// request's chunks have on average.
double MaxTokensPerSecond(const std::vector<const RequestRecord*>& completed) {
  int64_t first_ns = INT64_MAX;
  for (const RequestRecord* record : completed) first_ns = std::min(first_ns, record->start_ns);
  std::map<int64_t, double> tokens;
  for (const RequestRecord* record : completed) {
    const double weight =
        static_cast<double>(OutputTokens(*record)) / static_cast<double>(record->chunk_ns.size());
    for (const int64_t ns : record->chunk_ns) tokens[(ns - first_ns) / 1'000'000'000] += weight;
  }
  double most = 0;
  for (const auto& [second, count] : tokens) most = std::max(most, count);
  return most;
}

// Requests are in progress from when they are sent until just before their last token.
int64_t MaxConcurrent(const std::vector<const RequestRecord*>& completed) {
  std::vector<std::pair<int64_t, int>> changes;
  for (const RequestRecord* record : completed) {
    changes.emplace_back(record->start_ns, 1);
    changes.emplace_back(record->chunk_ns.back(), -1);
  }
  std::sort(changes.begin(), changes.end());  // those that end first
  int64_t running = 0;
  int64_t most = 0;
  for (const auto& [ns, change] : changes) most = std::max(most, running += change);
  return most;
}

std::string WithoutNumbers(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit) result.push_back(c);
    if (digit && (result.empty() || result.back() != '#')) result.push_back('#');
  }
  return result;
}

std::vector<std::pair<std::string, int64_t>> GroupErrors(
    const std::vector<RequestRecord>& records) {
  std::map<std::string, std::pair<std::string, int64_t>> groups;
  for (const RequestRecord& record : records) {
    if (record.state != State::kFailed) continue;
    auto& group = groups[WithoutNumbers(record.error)];
    if (group.second++ == 0) group.first = record.error;
  }
  std::vector<std::pair<std::string, int64_t>> result;
  for (auto& [key, group] : groups) result.push_back(std::move(group));
  std::stable_sort(result.begin(), result.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return result;
}

}  // namespace

Summary Summarize(std::vector<double> values, const std::vector<double>& percentiles) {
  Summary summary;
  if (values.empty()) {
    for (const double p : percentiles) summary.percentiles.emplace_back(p, 0.0);
    return summary;
  }
  std::sort(values.begin(), values.end());
  const auto count = static_cast<double>(values.size());
  summary.mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double squares = 0;
  for (const double value : values) squares += (value - summary.mean) * (value - summary.mean);
  summary.stddev = std::sqrt(squares / count);
  summary.median = Percentile(values, 50);
  for (const double p : percentiles) summary.percentiles.emplace_back(p, Percentile(values, p));
  return summary;
}

int64_t InputTokens(const RequestRecord& record) {
  return record.prompt_tokens >= 0 ? record.prompt_tokens : record.prompt_length;
}

int64_t OutputTokens(const RequestRecord& record) {
  return record.output_tokens >= 0 ? record.output_tokens
                                   : static_cast<int64_t>(record.chunk_ns.size());
}

std::vector<double> Gaps(const RequestRecord& record) {
  std::vector<double> gaps;
  for (size_t i = 1; i < record.chunk_ns.size(); ++i) {
    gaps.push_back(static_cast<double>(record.chunk_ns[i] - record.chunk_ns[i - 1]) * 1e-9);
  }
  return gaps;
}

LoadMetrics ComputeMetrics(const std::vector<RequestRecord>& records,
                           const std::vector<double>& percentiles, const Goodput& goodput) {
  LoadMetrics metrics;
  std::vector<const RequestRecord*> completed;
  std::vector<double> ttft, tpot, itl, e2el, queue_time, e2el_with_queue, send_delay;
  for (const RequestRecord& record : records) {
    if (record.state == State::kFailed) ++metrics.num_failed;
    if (record.state == State::kInterrupted) ++metrics.num_interrupted;
    if (record.state != State::kWaiting) send_delay.push_back(record.send_delay());
    if (record.state != State::kCompleted) continue;
    completed.push_back(&record);
    metrics.input_tokens += InputTokens(record);
    metrics.output_tokens += OutputTokens(record);
    metrics.num_without_usage += record.output_tokens < 0 ? 1 : 0;
    metrics.num_good += IsGood(record, goodput) ? 1 : 0;
    ttft.push_back(record.ttft());
    if (OutputTokens(record) > 1) tpot.push_back(Tpot(record));
    const std::vector<double> gaps = Gaps(record);
    itl.insert(itl.end(), gaps.begin(), gaps.end());
    e2el.push_back(record.latency());
    queue_time.push_back(record.queue_time());
    e2el_with_queue.push_back(record.latency() + record.queue_time());
  }
  metrics.num_completed = static_cast<int64_t>(completed.size());
  metrics.max_output_tokens_per_s = MaxTokensPerSecond(completed);
  metrics.max_concurrent_requests = MaxConcurrent(completed);
  metrics.ttft = Summarize(std::move(ttft), percentiles);
  metrics.tpot = Summarize(std::move(tpot), percentiles);
  metrics.itl = Summarize(std::move(itl), percentiles);
  metrics.e2el = Summarize(std::move(e2el), percentiles);
  metrics.queue_time = Summarize(std::move(queue_time), percentiles);
  metrics.e2el_with_queue = Summarize(std::move(e2el_with_queue), percentiles);
  for (const double delay : send_delay) {
    metrics.max_send_delay = std::max(metrics.max_send_delay, delay);
  }
  metrics.send_delay = Summarize(std::move(send_delay), {50, 99});
  metrics.errors = GroupErrors(records);
  return metrics;
}

}  // namespace nibble::client
