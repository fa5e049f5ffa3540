// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// {"String": "..."} or {"Regex": "..."} of tokenizer.json.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/tokenizer/json_node.h"
#include "engine/tokenizer/regex.h"
#include "engine/tokenizer/text_limit.h"

namespace nibble::engine {

// Immutable; thread-safe.
class TextPattern {
 public:
  static absl::StatusOr<TextPattern> Create(const JsonNode& node);
  static absl::StatusOr<TextPattern> FromRegex(std::string_view pattern);

  // Cuts `text` into matches and what lies between.
  absl::Status FindAll(std::string_view text, std::vector<Span>* spans) const;
  // `text` with every match replaced; within `limit`.
  absl::StatusOr<std::string> Replace(std::string_view text, std::string_view content,
                                      const TextLimit& limit) const;

 private:
  std::string plain_;  // used when there is no regex
  std::optional<Regex> regex_;
};

}  // namespace nibble::engine
