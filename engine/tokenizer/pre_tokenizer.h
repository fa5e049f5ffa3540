// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The "pre_tokenizer" of tokenizer.json: cuts a normalized text into the pieces ("words") that the
// model never merges across, and rewrites them (byte alphabet, SentencePiece's blank).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/tokenizer/json_node.h"
#include "engine/tokenizer/text_limit.h"

namespace nibble::engine {

// Pieces, one behind the other in one buffer: a word costs no allocation.
struct Pieces {
  std::string text;
  std::vector<size_t> ends;       // piece i is text[ends[i-1], ends[i])
  bool first_is_at_start = true;  // the first piece begins where the whole input begins

  size_t size() const { return ends.size(); }
  std::string_view operator[](size_t index) const {
    const size_t begin = index == 0 ? 0 : ends[index - 1];
    return std::string_view(text).substr(begin, ends[index] - begin);
  }
  // Empty pieces are dropped.
  void Add(std::string_view piece) {
    text += piece;
    Close();
  }
  // Ends the piece that was appended to `text`.
  void Close() {
    if (text.size() > (ends.empty() ? 0 : ends.back())) ends.push_back(text.size());
  }
};

// Immutable; thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // The result is within `limit`.
  absl::StatusOr<Pieces> Apply(const Pieces& in, const TextLimit& limit) const;

 private:
  // At most a small multiple of what comes in, unless it is made of steps.
  virtual absl::StatusOr<Pieces> Cut(const Pieces& in, const TextLimit& limit) const = 0;
};

// Null for a null node. An unknown type is refused by name.
absl::StatusOr<std::unique_ptr<PreTokenizer>> CreatePreTokenizer(const JsonNode& node);

}  // namespace nibble::engine
