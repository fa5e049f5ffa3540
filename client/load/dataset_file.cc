// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/dataset_file.h"

#include <algorithm>
#include <cmath>

#include "base/json.h"
#include "client/load/limits.h"

namespace nibble::client {
namespace {

using nlohmann::json;

constexpr size_t kMaxLineBytes = size_t{64} << 20;
constexpr double kMaxTimestampSeconds = 1e12;

// `read(line as JSON)` for each line that is not empty.
template <typename Read>
absl::Status ForEachLine(std::string_view text, const Read& read) {
  int64_t number = 0;
  int64_t count = 0;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto fail = [&](const absl::Status& status) {
      return Annotate(status, fmt::format("line {}", number));
    };
    if (++count > kMaxPrompts) {
      return fail(InvalidArgument("the limit is {} prompts", kMaxPrompts));
    }
    const absl::StatusOr<json> value = ParseJson(line, {.max_bytes = kMaxLineBytes});
    if (!value.ok()) return fail(value.status());
    if (!value->is_object()) return fail(InvalidArgument("want a JSON object"));
    if (const absl::Status status = read(*value); !status.ok()) return fail(status);
  }
  return count > 0 ? absl::OkStatus() : InvalidArgument("there is no prompt");
}

absl::StatusOr<int64_t> ReadCount(const json& value, const char* name, int64_t low) {
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX})) {
    return InvalidArgument("{}: want a whole number from {} to {}", name, low, kMaxTokens);
  }
  const auto number = value.get<int64_t>();
  if (number < low || number > kMaxTokens) {
    return InvalidArgument("{} is {}, want {} to {}", name, number, low, kMaxTokens);
  }
  return number;
}

absl::Status ReadPrompt(const json& prompt, LoadRequest* request) {
  if (prompt.is_string()) {
    request->text = prompt.get<std::string>();
    if (!request->text.empty()) return absl::OkStatus();
    return InvalidArgument("prompt is empty");
  }
  if (!prompt.is_array() || prompt.empty()) {
    return InvalidArgument("prompt: want a text, or a list of token ids");
  }
  if (prompt.size() > static_cast<size_t>(kMaxTokens)) {
    return InvalidArgument("prompt has {} token ids, the limit is {}", prompt.size(), kMaxTokens);
  }
  for (const json& id : prompt) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t{INT32_MAX}) {
      return InvalidArgument("prompt: want token ids from 0 to {}", INT32_MAX);
    }
    request->token_ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
  }
  return absl::OkStatus();
}

absl::Status ReadPromptLine(const json& object, int64_t default_output_tokens,
                            std::vector<LoadRequest>* requests) {
  LoadRequest request{.token_ids = {}, .text = {}, .output_tokens = default_output_tokens};
  if (!object.contains("prompt")) return InvalidArgument("there is no prompt");
  NIBBLE_RETURN_IF_ERROR(ReadPrompt(object["prompt"], &request));
  if (const auto found = object.find("output_tokens"); found != object.end()) {
    NIBBLE_ASSIGN_OR_RETURN(request.output_tokens, ReadCount(*found, "output_tokens", 1));
  }
  requests->push_back(std::move(request));
  return absl::OkStatus();
}

absl::StatusOr<double> ReadTimestamp(const json& object, double scale) {
  const auto found = object.find("timestamp");
  if (found == object.end() || !found->is_number()) {
    return InvalidArgument("timestamp: want a number");
  }
  const double seconds = found->get<double>() * scale;
  if (!(seconds >= 0 && seconds <= kMaxTimestampSeconds)) {
    return InvalidArgument("timestamp is {}, want 0 to {} seconds", seconds, kMaxTimestampSeconds);
  }
  return seconds;
}

absl::Status ReadTraceLine(const json& object, std::vector<LoadRequest>* requests) {
  const bool in_ms = object.contains("input_length");
  const char* const output = in_ms ? "output_length" : "output_tokens";
  LoadRequest request;
  NIBBLE_ASSIGN_OR_RETURN(request.timestamp, ReadTimestamp(object, in_ms ? 1e-3 : 1.0));
  if (!object.contains(output)) return InvalidArgument("there is no {}", output);
  NIBBLE_ASSIGN_OR_RETURN(request.output_tokens, ReadCount(object[output], output, 1));
  if (object.contains("prompt")) {
    NIBBLE_RETURN_IF_ERROR(ReadPrompt(object["prompt"], &request));
  } else {
    const char* const input = in_ms ? "input_length" : "input_tokens";
    if (!object.contains(input)) return InvalidArgument("want prompt or {}", input);
    NIBBLE_ASSIGN_OR_RETURN(request.input_tokens, ReadCount(object[input], input, 1));
  }
  requests->push_back(std::move(request));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<LoadRequest>> ParsePromptLines(std::string_view text,
                                                          int64_t default_output_tokens) {
  std::vector<LoadRequest> requests;
  const absl::Status status = ForEachLine(text, [&](const json& object) {
    return ReadPromptLine(object, default_output_tokens, &requests);
  });
  if (!status.ok()) return status;
  return requests;
}

absl::StatusOr<std::vector<LoadRequest>> ParseTimedTrace(std::string_view text) {
  std::vector<LoadRequest> requests;
  NIBBLE_RETURN_IF_ERROR(
      ForEachLine(text, [&](const json& object) { return ReadTraceLine(object, &requests); }));
  std::stable_sort(
      requests.begin(), requests.end(),
      [](const LoadRequest& a, const LoadRequest& b) { return a.timestamp < b.timestamp; });
  const double first = requests.front().timestamp;
  if (const double span = requests.back().timestamp - first; span > kMaxSpanSeconds) {
    return InvalidArgument("timestamps are {} seconds apart, the limit is {}", span,
                           kMaxSpanSeconds);
  }
  for (LoadRequest& request : requests) request.timestamp -= first;
  return requests;
}

}  // namespace nibble::client
