// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/json.h"

#include <string>

#include "base/utf8.h"

namespace nibble {

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return InvalidArgument("JSON of {} bytes, the limit is {}", text.size(), limits.max_bytes);
  }
  bool too_deep = false;
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json&) {
    using Event = nlohmann::json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) &&
        depth >= limits.max_depth) {
      too_deep = true;
    }
    return !too_deep;
  };
  try {
    nlohmann::json value = nlohmann::json::parse(text.begin(), text.end(), check_depth);
    if (too_deep)
      return InvalidArgument("JSON nested deeper than the limit of {}", limits.max_depth);
    return value;
  } catch (const nlohmann::json::exception& error) {
    if (too_deep)
      return InvalidArgument("JSON nested deeper than the limit of {}", limits.max_depth);
    // The message quotes the offending token, which may be long and need not be UTF-8.
    constexpr size_t kMaxMessageBytes = 200;
    const std::string_view message(error.what());
    return InvalidArgument("malformed JSON: {}{}",
                           ReplaceInvalidUtf8(message.substr(0, kMaxMessageBytes)),
                           message.size() > kMaxMessageBytes ? "..." : "");
  }
}

}  // namespace nibble
