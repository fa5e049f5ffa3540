// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Strings by their prefixes: which of a set start at a place of a text. Immutable after the last
// Insert(); then thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace nibble::engine {

class ByteTrie {
 public:
  static constexpr int32_t kNone = -1;

  // `value` >= 0. A key inserted twice keeps its last value; an empty key is never found.
  void Insert(std::string_view key, int32_t value);
  bool empty() const { return num_keys_ == 0; }

  // Calls visit(length, value) for every key that `text` starts with, shortest first.
  template <typename Visit>
  void VisitPrefixes(std::string_view text, const Visit& visit) const {
    uint32_t node = 0;
    for (size_t pos = 0; pos < text.size(); ++pos) {
      const auto edge = edges_.find(EdgeKey(node, text[pos]));
      if (edge == edges_.end()) return;
      node = edge->second;
      if (values_[node] != kNone) visit(pos + 1, values_[node]);
    }
  }

  struct Found {
    size_t length = 0;  // 0: nothing found
    int32_t value = kNone;
  };
  Found LongestPrefix(std::string_view text) const {
    Found found;
    VisitPrefixes(text, [&](size_t length, int32_t value) { found = {length, value}; });
    return found;
  }

 private:
  static uint64_t EdgeKey(uint32_t node, char byte) {
    return (uint64_t{node} << 8) | static_cast<uint8_t>(byte);
  }

  absl::flat_hash_map<uint64_t, uint32_t> edges_;  // (node, byte) -> node
  std::vector<int32_t> values_ = {kNone};          // per node; node 0 is the root
  size_t num_keys_ = 0;
};

}  // namespace nibble::engine
