// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/load_options.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "fmt/ranges.h"

#include "client/load/limits.h"
#include "client/load/result.h"

namespace nibble::client {
namespace {

using Violations = std::vector<std::string>;

constexpr std::array<std::string_view, 6> kMetrics = {
    "ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue"};

bool IsToken(std::string_view text) {  // of a header's name
  constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           kMarks.find(c) != std::string_view::npos;
  });
}

bool IsPrintable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

void CheckNumber(std::string_view option, double value, double low, double high,
                 Violations* violations) {
  if (!(value >= low && value <= high)) {
    violations->push_back(fmt::format("{} is {}, want {} to {}", option, value, low, high));
  }
}

template <typename T>
void CheckOptional(std::string_view option, const std::optional<T>& value, double low, double high,
                   Violations* violations) {
  if (value.has_value()) CheckNumber(option, static_cast<double>(*value), low, high, violations);
}

std::string Lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  }
  return text;
}

void CheckHeaders(const LoadOptions& options, Violations* violations) {
  constexpr std::array<std::string_view, 4> kOurs = {"host", "content-length", "transfer-encoding",
                                                     "connection"};
  for (const std::string& header : options.headers) {
    const size_t equals = header.find('=');
    const std::string name = Lower(header.substr(0, equals));
    if (equals == std::string::npos || !IsToken(name) || !IsPrintable(header)) {
      violations->push_back(fmt::format("--header '{}': want NAME=VALUE", header));
    } else if (std::find(kOurs.begin(), kOurs.end(), name) != kOurs.end()) {
      violations->push_back(fmt::format("--header '{}': is set for each request", header));
    } else if (name == "authorization" && !options.security.api_key.empty()) {
      violations->push_back(
          "--header Authorization and --api-key (or NIBBLE_API_KEY): want one of them");
    } else if (!options.grpc.empty() &&
               (name.starts_with("grpc-") || name.find_first_of("!#$%&'*+^`|~") != name.npos)) {
      violations->push_back(fmt::format("--header '{}': gRPC's metadata has no such name", header));
    }
  }
}

// "p99.9_ttft_ms": results have as many of these as are asked for.
bool IsPercentileKey(std::string_view key) {
  if (!key.starts_with('p') || !key.ends_with("_ms")) return false;
  const size_t end = key.find('_');
  const std::string_view number = key.substr(1, end - 1);
  if (number.empty() || number.find_first_not_of("0123456789.e+-") != key.npos) return false;
  const std::string_view metric = key.substr(end + 1, key.size() - end - 4);
  return std::find(kMetrics.begin(), kMetrics.end(), metric) != kMetrics.end();
}

void CheckMetadata(const LoadOptions& options, Violations* violations) {
  const std::vector<std::string> own = ResultKeys();
  for (const std::string& pair : options.metadata) {
    const std::string key = pair.substr(0, pair.find('='));
    if (key.empty() || key.size() == pair.size()) {
      violations->push_back(fmt::format("--metadata '{}': want KEY=VALUE", pair));
    } else if (IsPercentileKey(key) || std::find(own.begin(), own.end(), key) != own.end()) {
      violations->push_back(
          fmt::format("--metadata '{}': results have a key of that name already", pair));
    }
  }
}

void CheckGoodput(const LoadOptions& options, Violations* violations) {
  for (const std::string& pair : options.goodput) {
    const size_t colon = pair.find(':');
    const std::string name = pair.substr(0, colon);
    const std::string text = colon == std::string::npos ? "" : pair.substr(colon + 1);
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if ((name != "ttft" && name != "tpot" && name != "e2el") || text.empty() || *end != '\0' ||
        !(value >= 0 && value <= 1e12)) {
      violations->push_back(
          fmt::format("--goodput '{}': want ttft:MS, tpot:MS or e2el:MS, MS from 0", pair));
    }
  }
}

void CheckMetrics(const LoadOptions& options, Violations* violations) {
  for (const std::string& metric : ParsePercentileMetrics(options)) {
    if (std::find(kMetrics.begin(), kMetrics.end(), metric) == kMetrics.end()) {
      violations->push_back(fmt::format("--percentile-metrics '{}': want some of {}", metric,
                                        fmt::join(kMetrics, ", ")));
    }
  }
  for (const double p : options.metric_percentiles) {
    CheckNumber("--metric-percentiles", p, 0, 100, violations);
  }
}

void CheckServer(const LoadOptions& options, Violations* violations) {
  if (options.backend != "openai" && options.backend != "openai-chat") {
    violations->push_back(
        fmt::format("--backend is '{}', want openai or openai-chat", options.backend));
  }
  if (const absl::Status status = options.security.Validate(); !status.ok()) {
    violations->push_back(std::string(status.message()));
  }
  if (!options.grpc.empty()) {
    const size_t colon = options.grpc.rfind(':');
    if (colon == std::string::npos || colon == 0 || !IsPort(options.grpc.substr(colon + 1)) ||
        options.grpc.find("//") != std::string::npos || !IsPrintable(options.grpc)) {
      violations->push_back(
          fmt::format("--grpc is '{}', want HOST:PORT, a port from 1 to 65535", options.grpc));
    }
    if (!options.endpoint.empty()) violations->push_back("--endpoint goes with --url");
    return;
  }
  if (const auto url = Url::Parse(options.url); !url.ok()) {
    violations->push_back("--url: " + std::string(url.status().message()));
  } else if (const absl::Status status = options.security.CheckFor(url->tls);
             !status.ok() && options.security.Validate().ok()) {
    violations->push_back(std::string(status.message()));
  }
  if (!options.endpoint.starts_with('/') && !options.endpoint.empty()) {
    violations->push_back(
        fmt::format("--endpoint is '{}', want a path such as /v1/completions", options.endpoint));
  }
  if (options.endpoint.find_first_of(" \t\r\n") != std::string::npos) {
    violations->push_back("--endpoint has white space");
  }
  const std::string path = options.path();
  const bool is_chat_path = path.ends_with("/chat/completions");
  if (options.chat() != is_chat_path && path.ends_with("/completions")) {
    violations->push_back(
        fmt::format("--endpoint {} does not go with --backend {}", path, options.backend));
  }
}

}  // namespace

void SamplingOptions::Validate(std::vector<std::string>* violations) const {
  CheckOptional("--temperature", temperature, 0, 100, violations);
  CheckOptional("--top-p", top_p, 0, 1, violations);
  CheckOptional("--top-k", top_k, -1, 1e9, violations);
  CheckOptional("--min-p", min_p, 0, 1, violations);
  CheckOptional("--frequency-penalty", frequency_penalty, -2, 2, violations);
  CheckOptional("--presence-penalty", presence_penalty, -2, 2, violations);
  CheckOptional("--repetition-penalty", repetition_penalty, 0, 100, violations);
}

absl::Status LoadOptions::Validate() const {
  Violations violations;
  CheckServer(*this, &violations);
  dataset.Validate(&violations);
  arrival.Validate(&violations);
  if (violations.empty() && !follows_trace()) arrival.CheckSpan(dataset.num_prompts, &violations);
  sampling.Validate(&violations);
  if (follows_trace() && (!std::isinf(arrival.request_rate) || arrival.has_ramp())) {
    violations.push_back(
        "--dataset-name timed-trace has times of its own: --no-self-timed leaves them out for "
        "--request-rate or --ramp-up-strategy");
  }
  if (!self_timed && !dataset.is_trace()) {
    violations.push_back("--no-self-timed goes with --dataset-name timed-trace");
  }
  CheckLimits("--max-concurrency", max_concurrency, 0, kMaxConcurrency, &violations);
  CheckLimits("--num-warmups", num_warmups, 0, kMaxPrompts, &violations);
  CheckNumber("--ready-check-timeout-sec", ready_check_timeout_seconds, 0, 1e6, &violations);
  CheckNumber("--request-timeout", request_timeout_seconds, 0.001, 1e6, &violations);
  CheckHeaders(*this, &violations);
  CheckMetadata(*this, &violations);
  CheckGoodput(*this, &violations);
  CheckMetrics(*this, &violations);
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

std::string LoadOptions::path() const {
  if (!endpoint.empty()) return endpoint;
  return chat() ? "/v1/chat/completions" : "/v1/completions";
}

std::string LoadOptions::backend_name() const {
  if (grpc.empty()) return backend;
  return chat() ? "nibble-grpc-chat" : "nibble-grpc";
}

bool LoadOptions::ignores_eos() const {
  return ignore_eos || dataset.name == "random" || dataset.is_trace();
}

Goodput ParseGoodput(const LoadOptions& options) {
  Goodput goodput;
  for (const std::string& pair : options.goodput) {
    const size_t colon = pair.find(':');
    goodput.limits[pair.substr(0, colon)] = std::strtod(pair.c_str() + colon + 1, nullptr);
  }
  return goodput;
}

std::vector<std::string> ParsePercentileMetrics(const LoadOptions& options) {
  std::vector<std::string> metrics;
  std::string_view rest = options.percentile_metrics;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    metrics.emplace_back(rest.substr(0, comma));
    rest.remove_prefix(comma == std::string_view::npos ? rest.size() : comma + 1);
  }
  return metrics;
}

std::vector<std::pair<std::string, std::string>> ParsePairs(const std::vector<std::string>& pairs) {
  std::vector<std::pair<std::string, std::string>> result;
  for (const std::string& pair : pairs) {
    const size_t equals = pair.find('=');
    result.emplace_back(pair.substr(0, equals), pair.substr(equals + 1));
  }
  return result;
}

absl::StatusOr<HttpStreamsOptions> ParseHttp(const LoadOptions& options) {
  HttpStreamsOptions http{
      .url = {}, .security = options.security, .headers = ParsePairs(options.headers)};
  NIBBLE_ASSIGN_OR_RETURN(http.url, Url::Parse(options.url));
  return http;
}

}  // namespace nibble::client
