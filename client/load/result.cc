// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/result.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "fmt/format.h"

#include "client/http/printable.h"
#include "client/load/load_options.h"
#include "client/load/statistics.h"

namespace nibble::client {
namespace {

using nlohmann::ordered_json;

constexpr std::array kDetailKeys = {"input_lens", "output_lens",   "ttfts",     "itls",
                                    "latencies",  "start_times",   "end_times", "send_delays",
                                    "errors",     "finish_reasons"};
constexpr int kMaxShownErrors = 10;

// A client is a bottleneck once a tenth of what it measures is its own; below a millisecond the
// kernel's scheduling of threads says more than the client.
constexpr double kMaxShare = 0.1;
constexpr double kMinDelayMs = 1.0;
constexpr double kMaxCpu = 0.9;

struct Metric {
  const char* name;
  const char* title;
  const char* heading;
  Summary LoadMetrics::*summary;
};
constexpr std::array kMetrics = {
    Metric{"ttft", "TTFT", "Time to First Token", &LoadMetrics::ttft},
    Metric{"tpot", "TPOT", "Time per Output Token (excl. 1st token)", &LoadMetrics::tpot},
    Metric{"itl", "ITL", "Inter-token Latency", &LoadMetrics::itl},
    Metric{"e2el", "E2EL", "End-to-end Latency", &LoadMetrics::e2el},
    Metric{"client_queue_time", "Client Queue Time", "Client-side Queueing",
           &LoadMetrics::queue_time},
    Metric{"e2el_including_client_queue", "E2EL incl. Client Queue",
           "Queue-inclusive End-to-end Latency", &LoadMetrics::e2el_with_queue},
};

std::string PercentileName(double p) {
  return p == std::floor(p) ? fmt::format("p{:.0f}", p) : fmt::format("p{}", p);
}

ordered_json RateOf(const ArrivalOptions& arrival) {
  if (std::isinf(arrival.request_rate)) return "inf";
  return arrival.request_rate;
}

ordered_json Describe(const LoadOptions& options, const RunDescription& description) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? ordered_json(nullptr) : ordered_json(text);
  };
  ordered_json result = {{"date", description.date},
                         {"endpoint_type", options.backend_name()},
                         {"backend", options.backend_name()},
                         {"label", or_null(options.label)},
                         {"model_id", description.model},
                         {"tokenizer_id", or_null(options.tokenizer)},
                         {"num_prompts", description.num_prompts},
                         {"dataset_name", options.dataset.name},
                         {"seed", options.dataset.seed}};
  for (const auto& [key, value] : ParsePairs(options.metadata)) result[key] = value;
  result["request_rate"] = RateOf(options.arrival);
  result["burstiness"] = std::isinf(options.arrival.burstiness)
                             ? ordered_json("inf")
                             : ordered_json(options.arrival.burstiness);
  result["max_concurrency"] =
      options.max_concurrency > 0 ? ordered_json(options.max_concurrency) : ordered_json(nullptr);
  if (options.arrival.has_ramp()) {
    result["ramp_up_strategy"] = options.arrival.ramp_up_strategy;
    result["ramp_up_start_rps"] = *options.arrival.start_rps;
    result["ramp_up_end_rps"] = *options.arrival.end_rps;
  }
  return result;
}

void AddThroughput(const LoadMetrics& metrics, double seconds, bool has_goodput,
                   ordered_json* result) {
  const auto rate = [&](auto count) {
    return seconds > 0 ? static_cast<double>(count) / seconds : 0.0;
  };
  ordered_json& out = *result;
  out["duration"] = seconds;
  out["completed"] = metrics.num_completed;
  out["failed"] = metrics.num_failed;
  out["interrupted"] = metrics.num_interrupted;
  out["total_input_tokens"] = metrics.input_tokens;
  out["total_output_tokens"] = metrics.output_tokens;
  out["request_throughput"] = rate(metrics.num_completed);
  out["request_goodput"] = has_goodput ? ordered_json(rate(metrics.num_good)) : ordered_json();
  out["output_throughput"] = rate(metrics.output_tokens);
  out["total_token_throughput"] = rate(metrics.input_tokens + metrics.output_tokens);
  out["max_output_tokens_per_s"] = metrics.max_output_tokens_per_s;
  out["max_concurrent_requests"] = metrics.max_concurrent_requests;
  out["requests_without_usage"] = metrics.num_without_usage;
}

// How much of the measured times is the client's own.
void AddClient(const LoadMetrics& metrics, const RunOutcome& outcome, double seconds,
               ordered_json* result) {
  std::vector<double> wake_delays;
  double longest = 0;
  for (const int64_t ns : outcome.wake_delays_ns) {
    wake_delays.push_back(static_cast<double>(ns) * 1e-9);
    longest = std::max(longest, wake_delays.back());
  }
  const Summary receive = Summarize(std::move(wake_delays), {50, 99});
  ordered_json& out = *result;
  out["p50_send_delay_ms"] = metrics.send_delay.percentiles[0].second * 1e3;
  out["p99_send_delay_ms"] = metrics.send_delay.percentiles[1].second * 1e3;
  out["max_send_delay_ms"] = metrics.max_send_delay * 1e3;
  out["p50_receive_delay_ms"] = receive.percentiles[0].second * 1e3;
  out["p99_receive_delay_ms"] = receive.percentiles[1].second * 1e3;
  out["max_receive_delay_ms"] = longest * 1e3;
  out["resent_requests"] = outcome.num_resends;
  out["client_cpu"] = seconds > 0 ? outcome.cpu_seconds / seconds : 0.0;
}

void AddDetails(const RunOutcome& outcome, ordered_json* result) {
  for (const char* key : kDetailKeys) (*result)[key] = ordered_json::array();
  for (const RequestRecord& record : outcome.records) {
    const bool completed = record.state == RequestRecord::State::kCompleted;
    const bool interrupted = record.state == RequestRecord::State::kInterrupted;
    if (!completed && !interrupted && record.state != RequestRecord::State::kFailed) continue;
    const auto add = [&](const char* key, ordered_json value) {
      (*result)[key].push_back(std::move(value));
    };
    add("input_lens", InputTokens(record));
    add("output_lens", completed ? OutputTokens(record) : 0);
    add("ttfts", completed ? record.ttft() : 0.0);
    add("itls", completed ? ordered_json(Gaps(record)) : ordered_json::array());
    add("latencies", completed ? record.latency() : 0.0);
    add("start_times", record.SecondsOf(record.start_ns));
    add("end_times", record.SecondsOf(record.end_ns));
    add("send_delays", record.send_delay());
    add("errors", interrupted ? "interrupted" : record.error);
    add("finish_reasons", record.finish_reason);
  }
}

// "Mean TTFT (ms):                          12.34     "
template <typename T>
void Row(std::string_view name, const T& value, std::string* text) {
  fmt::format_to(std::back_inserter(*text), "{:<40} {:<10}\n", name, value);
}

}  // namespace

ordered_json BuildResult(const LoadOptions& options, const RunDescription& description,
                         const RunOutcome& outcome) {
  const LoadMetrics metrics =
      ComputeMetrics(outcome.records, options.metric_percentiles, ParseGoodput(options));
  const double seconds = static_cast<double>(outcome.duration_ns) * 1e-9;
  ordered_json result = Describe(options, description);
  AddThroughput(metrics, seconds, !options.goodput.empty(), &result);
  const std::vector<std::string> wanted = ParsePercentileMetrics(options);
  for (const Metric& metric : kMetrics) {
    if (std::find(wanted.begin(), wanted.end(), metric.name) == wanted.end()) continue;
    const Summary& summary = metrics.*metric.summary;
    result[fmt::format("mean_{}_ms", metric.name)] = summary.mean * 1e3;
    result[fmt::format("median_{}_ms", metric.name)] = summary.median * 1e3;
    result[fmt::format("std_{}_ms", metric.name)] = summary.stddev * 1e3;
    for (const auto& [p, value] : summary.percentiles) {
      result[fmt::format("{}_{}_ms", PercentileName(p), metric.name)] = value * 1e3;
    }
  }
  AddClient(metrics, outcome, seconds, &result);
  ordered_json errors = ordered_json::array();
  for (const auto& [error, count] : metrics.errors) {
    errors.push_back({{"error", error}, {"count", count}});
  }
  result["error_counts"] = std::move(errors);
  if (description.with_details) AddDetails(outcome, &result);
  return result;
}

void RemoveDetails(ordered_json* result) {
  for (const char* key : kDetailKeys) result->erase(key);
}

std::string FormatBlock(const ordered_json& result) {
  std::string text = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  const auto count = [&](std::string_view name, const char* key) {
    if (result.contains(key) && result[key].is_number()) {
      Row(name, result[key].get<int64_t>(), &text);
    }
  };
  const auto number = [&](std::string_view name, const std::string& key) {
    if (result.contains(key) && result[key].is_number()) {
      Row(name, fmt::format("{:.2f}", result[key].get<double>()), &text);
    }
  };
  count("Successful requests:", "completed");
  count("Failed requests:", "failed");
  if (result.value("interrupted", 0) > 0) count("Interrupted requests:", "interrupted");
  count("Maximum request concurrency:", "max_concurrency");
  number("Request rate configured (RPS):", "request_rate");
  number("Benchmark duration (s):", "duration");
  count("Total input tokens:", "total_input_tokens");
  count("Total generated tokens:", "total_output_tokens");
  number("Request throughput (req/s):", "request_throughput");
  number("Request goodput (req/s):", "request_goodput");
  number("Output token throughput (tok/s):", "output_throughput");
  number("Peak output token throughput (tok/s):", "max_output_tokens_per_s");
  number("Peak concurrent requests:", "max_concurrent_requests");
  number("Total token throughput (tok/s):", "total_token_throughput");
  for (const Metric& metric : kMetrics) {
    if (!result.contains(fmt::format("mean_{}_ms", metric.name))) continue;
    text += fmt::format("{:-^50}\n", metric.heading);
    number(fmt::format("Mean {} (ms):", metric.title), fmt::format("mean_{}_ms", metric.name));
    number(fmt::format("Median {} (ms):", metric.title), fmt::format("median_{}_ms", metric.name));
    const std::string end = fmt::format("_{}_ms", metric.name);
    for (const auto& [key, value] : result.items()) {
      if (key.size() > end.size() + 1 && key[0] == 'p' && key[1] >= '0' && key[1] <= '9' &&
          key.ends_with(end)) {
        number(
            fmt::format("P{} {} (ms):", key.substr(1, key.size() - end.size() - 1), metric.title),
            key);
      }
    }
  }
  text += fmt::format("{:-^50}\n", "Client");
  number("P50 send delay (ms):", "p50_send_delay_ms");
  number("P99 send delay (ms):", "p99_send_delay_ms");
  number("Max send delay (ms):", "max_send_delay_ms");
  number("P99 receive delay (ms):", "p99_receive_delay_ms");
  number("CPU (of one core):", "client_cpu");
  if (!result["error_counts"].empty()) {
    text += fmt::format("{:-^50}\n", "Errors");
    int shown = 0;
    for (const ordered_json& group : result["error_counts"]) {
      if (++shown > kMaxShownErrors) {
        text += fmt::format("and {} more\n", result["error_counts"].size() - kMaxShownErrors);
        break;
      }
      text += fmt::format("{:>6} x {}\n", group["count"].get<int64_t>(),
                          PrintableMessage(group["error"].get_ref<const std::string&>()));
    }
  }
  return text + std::string(50, '=') + "\n";
}

std::vector<std::string> Warnings(const ordered_json& result) {
  std::vector<std::string> warnings;
  const auto check = [&](const char* what, const char* delay, const char* median,
                         const char* measured) {
    const double ms = result.value(delay, 0.0);
    const double limit = std::max(kMinDelayMs, kMaxShare * result.value(median, 0.0));
    if (ms > limit) {
      warnings.push_back(fmt::format(
          "the client was a bottleneck: it {} {:.1f} ms late (p99), more than {:.1f} ms, a tenth "
          "of the median {}: give it a core of its own, or share the load among several clients",
          what, ms, limit, measured));
    }
  };
  check("sent", "p99_send_delay_ms", "median_ttft_ms", "TTFT");
  check("received", "p99_receive_delay_ms", "median_itl_ms", "ITL");
  if (const double cpu = result.value("client_cpu", 0.0); cpu > kMaxCpu) {
    warnings.push_back(
        fmt::format("the client was a bottleneck: it used {:.0f} % of its core", cpu * 100));
  }
  if (const int64_t count = result.value("requests_without_usage", int64_t{0}); count > 0) {
    warnings.push_back(fmt::format(
        "{} answers came without usage: each of their chunks counts as a token, and their prompts "
        "as many as they were made of (those of a file's texts: none)",
        count));
  }
  if (const int64_t count = result.value("resent_requests", int64_t{0}); count > 0) {
    warnings.push_back(fmt::format(
        "{} requests were sent twice: the server closed a kept connection as they were sent, and "
        "what they waited for that is in their latencies",
        count));
  }
  if (result.value("failed", 0) > 0) {
    warnings.push_back("failed requests are in no latency and no throughput");
  }
  return warnings;
}

std::vector<std::string> ResultKeys() {
  const LoadOptions options{.arrival = {.ramp_up_strategy = "linear", .start_rps = 1, .end_rps = 1},
                            .percentile_metrics = ""};
  const ordered_json result = BuildResult(options, {}, {});
  std::vector<std::string> keys;
  for (const auto& [key, value] : result.items()) keys.push_back(key);
  for (const Metric& metric : kMetrics) {
    for (const char* statistic : {"mean", "median", "std"}) {
      keys.push_back(fmt::format("{}_{}_ms", statistic, metric.name));
    }
  }
  return keys;
}

}  // namespace nibble::client
