// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Cuts a template into tokens, with Jinja's rules for white space around tags: `-` strips, `+`
// keeps, the newline after a block or comment is dropped (trim_blocks), and so are the blanks in
// front of one that starts its line (lstrip_blocks). Comments are dropped and {% raw %} becomes
// plain text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::server::jinja {

enum class TokenKind {
  kText,           // template text outside of tags
  kVariableBegin,  // {{
  kVariableEnd,    // }}
  kBlockBegin,     // {%
  kBlockEnd,       // %}
  kName,
  kString,  // `text` with its escapes resolved
  kInteger,
  kFloat,
  kOperator,  // `text` is the operator
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
  int64_t integer = 0;
  double number = 0;
};

// `source` is valid UTF-8. The last token is kEnd.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace nibble::server::jinja
