// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What tokenizer_config.json and its neighbours say about chats: the template and the special
// tokens it may use.
#pragma once

#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

#include "base/status.h"

namespace nibble::server {

struct TokenizerConfig {
  std::string chat_template;                  // empty: the model has none
  nlohmann::ordered_json template_variables;  // object: bos_token, eos_token, ... as strings
};

// Reads `dir`/tokenizer_config.json, and the template from chat_template.jinja or
// chat_template.json where the model keeps it there. Absent files give empty values; malformed ones
// are INVALID_ARGUMENT naming file and element.
absl::StatusOr<TokenizerConfig> LoadTokenizerConfig(const std::string& dir);
// The same from the text of tokenizer_config.json alone; `path` is for messages.
absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(std::string_view json_text,
                                                     std::string_view path);

}  // namespace nibble::server
