// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Text to ids as SentencePiece does it: normalize (character map, blanks), segment by BPE or
// Unigram, and spell what has no piece in bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/tokenizer/byte_trie.h"
#include "engine/tokenizer/charsmap.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/text_limit.h"
#include "engine/tokenizer/unigram_lattice.h"

namespace nibble::engine {

// Immutable; thread-safe.
class SentencePieceEncoder {
 public:
  // INVALID_ARGUMENT when the model's character map is broken.
  static absl::StatusOr<SentencePieceEncoder> Create(SentencePieceModel model);

  // Appends the ids of valid UTF-8 `text`. `dummy_prefix` false leaves out the blank that the model
  // puts in front of a text, for what follows a special token. The normalized text is spent from
  // `limit`.
  absl::Status Encode(std::string_view text, bool dummy_prefix, TextLimit* limit,
                      std::vector<int32_t>* ids) const;

  const SentencePieceModel& model() const { return model_; }

 private:
  SentencePieceEncoder() = default;

  absl::StatusOr<std::string> Normalize(std::string_view text, bool dummy_prefix,
                                        const TextLimit& limit) const;
  Charsmap::Match NormalizePrefix(std::string_view text) const;
  std::vector<UnigramSpan> SegmentBpe(std::string_view text) const;

  SentencePieceModel model_;
  Charsmap charsmap_;
  std::string_view blank_;  // what a space is written as
  ByteTrie user_defined_;   // pieces that are always kept whole
  UnigramPieces unigram_;
  // BPE: pieces that merging may make, by text. Views into model_.pieces, whose strings stay put
  // when the model moves (a vector's elements do).
  std::unordered_map<std::string_view, int32_t> mergeable_;
  size_t longest_piece_ = 0;
  std::vector<int32_t> byte_ids_;
};

}  // namespace nibble::engine
