// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/text_pattern.h"

#include <utility>

namespace nibble::engine {

absl::StatusOr<TextPattern> TextPattern::Create(const JsonNode& node) {
  const JsonNode plain = node["String"];
  const JsonNode regex = node["Regex"];
  TextPattern pattern;
  if (plain.exists()) {
    NIBBLE_ASSIGN_OR_RETURN(pattern.plain_, plain.String());
    if (pattern.plain_.empty()) return plain.Error("an empty string matches nothing");
    return pattern;
  }
  if (!regex.exists()) return node.Error("want {\"String\": ...} or {\"Regex\": ...}");
  NIBBLE_ASSIGN_OR_RETURN(const std::string source, regex.String());
  absl::StatusOr<Regex> compiled = Regex::Compile(source);
  if (!compiled.ok()) return regex.Error(std::string(compiled.status().message()));
  pattern.regex_ = std::move(compiled).value();
  return pattern;
}

absl::StatusOr<TextPattern> TextPattern::FromRegex(std::string_view source) {
  TextPattern pattern;
  NIBBLE_ASSIGN_OR_RETURN(pattern.regex_, Regex::Compile(source));
  return pattern;
}

absl::Status TextPattern::FindAll(std::string_view text, std::vector<Span>* spans) const {
  if (regex_.has_value()) return regex_->FindAll(text, spans);
  FindAllPlain(text, plain_, spans);
  return absl::OkStatus();
}

absl::StatusOr<std::string> TextPattern::Replace(std::string_view text, std::string_view content,
                                                 const TextLimit& limit) const {
  std::vector<Span> spans;
  NIBBLE_RETURN_IF_ERROR(FindAll(text, &spans));
  std::string result;
  result.reserve(text.size());
  for (const Span& span : spans) {
    result += span.is_match ? content : text.substr(span.begin, span.end - span.begin);
    NIBBLE_RETURN_IF_ERROR(limit.Check(result.size()));
  }
  return result;
}

}  // namespace nibble::engine
