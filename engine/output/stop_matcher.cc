// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/output/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace nibble::engine {

StopMatcher::Pattern::Pattern(std::string stop) : text(std::move(stop)) {
  border.assign(text.size() + 1, 0);
  uint32_t length = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (length > 0 && text[i] != text[length]) length = border[length];
    if (text[i] == text[length]) ++length;
    border[i + 1] = length;
  }
}

bool StopMatcher::Pattern::Advance(char byte) {
  while (num_matched > 0 && text[num_matched] != byte) num_matched = border[num_matched];
  if (text[num_matched] == byte) ++num_matched;
  if (num_matched < text.size()) return false;
  num_matched = border[num_matched];
  return true;
}

StopMatcher::StopMatcher(const std::vector<std::string>& stop) {
  patterns_.reserve(stop.size());
  for (const std::string& text : stop) patterns_.emplace_back(text);
}

std::optional<StopMatcher::Match> StopMatcher::Append(std::string_view text, bool may_match) {
  if (patterns_.empty()) return std::nullopt;
  for (const char byte : text) {
    ++num_bytes_;
    std::optional<Match> match;
    for (size_t i = 0; i < patterns_.size(); ++i) {
      if (!patterns_[i].Advance(byte)) continue;
      const size_t begin = num_bytes_ - patterns_[i].text.size();
      if (!match || begin < match->begin) match = Match{begin, i};
    }
    if (match && may_match) return match;
  }
  return std::nullopt;
}

size_t StopMatcher::num_held_bytes() const {
  size_t num_held = 0;
  for (const Pattern& pattern : patterns_) num_held = std::max(num_held, pattern.num_matched);
  return num_held;
}

}  // namespace nibble::engine
