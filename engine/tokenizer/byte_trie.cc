// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/byte_trie.h"

namespace nibble::engine {

void ByteTrie::Insert(std::string_view key, int32_t value) {
  if (key.empty()) return;
  uint32_t node = 0;
  for (const char byte : key) {
    const auto [edge, inserted] =
        edges_.try_emplace(EdgeKey(node, byte), static_cast<uint32_t>(values_.size()));
    if (inserted) values_.push_back(kNone);
    node = edge->second;
  }
  if (values_[node] == kNone) ++num_keys_;
  values_[node] = value;
}

}  // namespace nibble::engine
