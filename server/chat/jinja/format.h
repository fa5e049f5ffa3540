// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Values as text: Python's str and repr, json.dumps, and the two ways of filling in a pattern.
#pragma once

#include <string>
#include <string_view>

#include "server/chat/jinja/value.h"

namespace nibble::server::jinja {

// Fails when `out` grows beyond `max_bytes`: shared parts of a value are written each time.
absl::Status AppendStr(const Value& value, size_t max_bytes, std::string* out);
absl::Status AppendRepr(const Value& value, size_t max_bytes, std::string* out);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool pretty = false;
  std::string indent;  // of one level, when pretty
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
absl::Status AppendJson(const Value& value, const JsonStyle& style, size_t max_bytes,
                        std::string* out);

// "%s: %d" % args
absl::StatusOr<Value> FormatPercent(Interpreter& interpreter, std::string_view pattern,
                                    const Value& args);
// "{} {name}".format(args)
absl::StatusOr<Value> FormatBraces(Interpreter& interpreter, std::string_view pattern,
                                   const Args& args);

}  // namespace nibble::server::jinja
