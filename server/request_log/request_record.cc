// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <ctime>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "server/request_log/request_log.h"

namespace nibble::server {
namespace {

constexpr std::array<std::string_view, 17> kGrpcCodes = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

// Invalid UTF-8, which a client may send, is replaced.
std::string Quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string Timestamp(std::chrono::system_clock::time_point time) {
  using std::chrono::milliseconds;
  const auto since = std::chrono::floor<milliseconds>(time.time_since_epoch());
  const std::time_t seconds = std::chrono::floor<std::chrono::seconds>(since).count();
  std::tm parts = {};
  gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     (since % std::chrono::seconds(1)).count());
}

class JsonLine {
 public:
  void Text(std::string_view name, const std::string& value) { Raw(name, Quoted(value)); }
  void Count(std::string_view name, int64_t value) { Raw(name, std::to_string(value)); }
  void Seconds(std::string_view name, double value) { Raw(name, fmt::format("{:.6f}", value)); }
  void Raw(std::string_view name, std::string_view json) {
    fmt::format_to(std::back_inserter(line_), "{}\"{}\":{}", line_.empty() ? "{" : ",", name, json);
  }
  std::string Finish() { return std::move(line_) + "}"; }

 private:
  std::string line_;
};

void AppendFacts(const RequestTrace::Facts& facts, JsonLine* line) {
  if (facts.model.empty()) return;
  line->Text("model", facts.model);
  if (facts.num_choices == 0) return;  // refused before its prompt was read
  line->Raw("stream", facts.stream ? "true" : "false");
  line->Count("choices", facts.num_choices);
  line->Count("prompt_tokens", facts.num_prompt_tokens);
  line->Count("cached_tokens", facts.num_cached_tokens);
  line->Count("output_tokens", facts.num_output_tokens);
  std::string reasons;
  for (const std::string& reason : facts.finish_reasons) {
    reasons += (reasons.empty() ? "" : ",") + Quoted(reason);
  }
  line->Raw("finish_reasons", "[" + reasons + "]");
  if (facts.queue_seconds.has_value()) line->Seconds("queue_seconds", *facts.queue_seconds);
  if (facts.first_token_seconds.has_value()) {
    line->Seconds("ttft_seconds", *facts.first_token_seconds);
  }
}

}  // namespace

std::string FormatRecord(const RequestRecord& record, bool with_texts) {
  JsonLine line;
  line.Text("time", Timestamp(record.end));
  line.Text("request_id", record.request_id);
  line.Text("protocol", record.protocol);
  if (!record.method.empty()) line.Text("method", record.method);
  line.Text("route", record.route);
  line.Count("status", record.status);
  if (record.protocol == "grpc") {
    const bool known = record.status >= 0 && record.status < static_cast<int>(kGrpcCodes.size());
    line.Text("code", std::string(known ? kGrpcCodes[static_cast<size_t>(record.status)] : "?"));
  }
  if (!record.peer.empty()) line.Text("peer", record.peer);
  AppendFacts(record.facts, &line);
  line.Seconds("e2e_seconds", record.e2e_seconds);
  if (!record.facts.sampling.empty()) line.Raw("sampling", record.facts.sampling);
  if (with_texts && record.facts.num_choices > 0) {
    line.Text("prompt", record.facts.prompt);
    line.Text("output", record.facts.output);
  }
  return line.Finish();
}

}  // namespace nibble::server
