// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Finds stop strings in a text that arrives in pieces. The result does not depend on how the text
// was cut: the match that ends first wins, and among those that end at the same byte the longest.
//
// One Knuth-Morris-Pratt automaton per string, so that a byte costs a few steps per string whatever
// their length (amortized): 16 strings of 1 KiB and a token of 4 bytes are about a hundred.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::engine {

class StopMatcher {
 public:
  struct Match {
    size_t begin = 0;     // byte offset in the whole text
    size_t stop_idx = 0;  // index of the stop string
  };

  // `stop`: not empty strings; copied.
  explicit StopMatcher(const std::vector<std::string>& stop);

  // Continues the text. Returns the first match that ends in `text`; what follows it is not read,
  // and the matcher is done. With `may_match` false matches that end here do not count.
  std::optional<Match> Append(std::string_view text, bool may_match);

  // Bytes at the end of the text that may be the beginning of a stop string.
  size_t num_held_bytes() const;

 private:
  struct Pattern {
    std::string text;
    std::vector<uint32_t> border;  // border[n]: longest proper border of the first n bytes
    size_t num_matched = 0;        // bytes of `text` that end the text read so far

    explicit Pattern(std::string stop);
    bool Advance(char byte);  // true when the whole pattern ends with `byte`
  };

  std::vector<Pattern> patterns_;
  size_t num_bytes_ = 0;  // read so far
};

}  // namespace nibble::engine
