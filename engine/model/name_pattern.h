// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// An entry of a quantization_config's lists of modules: a name ("lm_head"), a class ("Linear"), or
// "re:" and a regular expression that must match from the name's first character on (Python's
// re.match).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace nibble::engine {

// Immutable, cheap to copy, thread-safe.
class NamePattern {
 public:
  // INVALID_ARGUMENT, with the place of the fault, for an expression that does not compile.
  static absl::StatusOr<NamePattern> Parse(std::string_view text);

  const std::string& text() const { return text_; }
  bool is_regex() const { return regex_ != nullptr; }

  // RESOURCE_EXHAUSTED when the expression takes more than `max_steps` backtracking steps on this
  // name, or for want of memory.
  absl::StatusOr<bool> Matches(std::string_view name, uint32_t max_steps) const;

 private:
  struct Compiled;
  std::string text_;
  std::shared_ptr<const Compiled> regex_;  // null: a plain name
};

}  // namespace nibble::engine
