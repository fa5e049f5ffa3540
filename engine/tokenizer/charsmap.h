// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// SentencePiece's precompiled character map: which byte sequences a normalizer replaces by what.
//
//   blob = [u32 n, little-endian][n bytes: double-array trie of u32 units][strings, each ends in
//   NUL]
//
// The trie's values are offsets into the strings. Every index read from the blob is checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

class Charsmap {
 public:
  Charsmap() = default;  // replaces nothing
  // INVALID_ARGUMENT for a blob whose parts do not fit.
  static absl::StatusOr<Charsmap> Parse(std::string_view blob);

  struct Match {
    size_t length = 0;  // bytes of the text it covers; 0: no entry starts here
    std::string_view replacement;
  };
  Match LongestPrefix(std::string_view text) const { return Find(text, true); }
  Match ShortestPrefix(std::string_view text) const { return Find(text, false); }

 private:
  Match Find(std::string_view text, bool longest) const;

  std::vector<uint32_t> units_;
  std::string strings_;
};

// RFC 4648 base64, as tokenizer.json carries the map.
absl::StatusOr<std::string> DecodeBase64(std::string_view text);

}  // namespace nibble::engine
