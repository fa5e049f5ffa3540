// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tokens that are found in a text before anything else cuts it: "<|user|>", "</s>", runs of blanks.
// At every place the longest one counts; a match may swallow the white space around it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/tokenizer/byte_trie.h"
#include "engine/tokenizer/json_node.h"
#include "engine/tokenizer/normalizer.h"

namespace nibble::engine {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;
  bool single_word = false;  // not within a word
  bool lstrip = false;       // takes the white space to its left
  bool rstrip = false;
  bool normalized = false;  // matched in the normalized text, in its own normalized form

  // `node` is an entry of tokenizer.json's "added_tokens" or of "added_tokens_decoder" in
  // tokenizer_config.json, whose keys are the ids.
  static absl::StatusOr<AddedToken> Parse(const JsonNode& node, int32_t id);
};

// A stretch of text between added tokens (id -1, never empty), or an added token.
struct TextPart {
  size_t begin = 0;
  size_t end = 0;
  int32_t id = -1;
};

// Immutable after the last Add(); then thread-safe.
class AddedTokens {
 public:
  // INVALID_ARGUMENT when content or id are taken already. `normalizer` may be null.
  absl::Status Add(AddedToken token, const Normalizer* normalizer);

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedToken* FindById(int32_t id) const;
  const AddedToken* FindByContent(std::string_view content) const;

  std::vector<TextPart> CutRaw(std::string_view text) const { return Cut(text, raw_); }
  std::vector<TextPart> CutNormalized(std::string_view text) const {
    return Cut(text, normalized_);
  }

 private:
  std::vector<TextPart> Cut(std::string_view text, const ByteTrie& trie) const;

  std::vector<AddedToken> tokens_;
  ByteTrie contents_;  // content -> index in tokens_
  absl::flat_hash_map<int32_t, int32_t> by_id_;
  ByteTrie raw_;         // of tokens matched in the raw text
  ByteTrie normalized_;  // of tokens matched in the normalized text
};

}  // namespace nibble::engine
