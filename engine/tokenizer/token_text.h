// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What each token contributes to a decoded text, worked out once at load. Every supported decoder
// is of this form: bytes per token, and a rule about the very beginning of a text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/json_node.h"
#include "engine/tokenizer/token_model.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::engine {

// How the beginning of a text differs from its middle.
enum class LeadingRule {
  kNone,
  kStripBytes,        // the first `max_stripped` bytes vanish while they equal `stripped`
  kFirstTokenBlanks,  // the first token loses its SentencePiece blanks, all of them
  kLeadingBlank,      // a leading blank of ordinary tokens vanishes
};

struct LeadingText {
  LeadingRule rule = LeadingRule::kNone;
  char stripped = ' ';
  int32_t max_stripped = 0;
};

// Immutable after construction; thread-safe.
class TokenText {
 public:
  explicit TokenText(LeadingText leading = {}) : leading_(leading) {}

  // `at_start`: what the token gives as the first of a text, under kFirstTokenBlanks and
  // kLeadingBlank. Ids ascend.
  void Set(int32_t id, std::string_view middle, std::string_view at_start);

  std::string_view Middle(int32_t id) const;
  // Appends what `id` gives at `start`, and moves `start` on.
  void Append(int32_t id, TextStart* start, std::string* out) const;

 private:
  struct Entry {
    std::string middle;
    std::string at_start;
    bool differs = false;
  };
  LeadingText leading_;
  std::vector<Entry> entries_;  // by id
};

// The "decoder" of tokenizer.json over all tokens. Decoders that cannot work token by token, and
// unknown ones, are refused by name.
absl::StatusOr<TokenText> CreateTokenText(const JsonNode& node, const Vocabulary& vocabulary,
                                          const AddedTokens& added);

}  // namespace nibble::engine
