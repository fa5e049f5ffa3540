// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Regular expressions of tokenizer files, matched by PCRE2 with its JIT compiler. The files are
// written for Oniguruma; what the two spell differently is translated or refused by name. Limits on
// steps, depth and memory turn a pattern that would run for ever into an error.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

// A stretch of a text, and whether the pattern matched it.
struct Span {
  size_t begin = 0;
  size_t end = 0;
  bool is_match = false;
};

// Immutable after Compile(); thread-safe.
class Regex {
 public:
  static absl::StatusOr<Regex> Compile(std::string_view pattern);

  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  // Cuts valid UTF-8 `text` into matches and what lies between them. RESOURCE_EXHAUSTED when the
  // pattern needs more than its limits on this text.
  absl::Status FindAll(std::string_view text, std::vector<Span>* spans) const;

 private:
  struct Compiled;
  explicit Regex(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

// The same cut by a plain string (not empty).
void FindAllPlain(std::string_view text, std::string_view needle, std::vector<Span>* spans);

}  // namespace nibble::engine
