// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The best segmentation of a text into pieces with scores (log probabilities): Viterbi over byte
// positions, as the Unigram models of SentencePiece and `tokenizers` do it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/tokenizer/byte_trie.h"

namespace nibble::engine {

// What an unknown character costs below the worst piece.
inline constexpr double kUnknownPenalty = 10.0;

struct UnigramSpan {
  size_t begin = 0;
  size_t length = 0;
  int32_t id = -1;
};

struct UnigramPieces {
  ByteTrie trie;               // piece -> id
  std::vector<double> scores;  // per id
  double unknown_score = 0.0;
  int32_t unknown_id = -1;
  bool single_precision = false;  // sums rounded to float, as SentencePiece has them
};

// Covers `text` (valid UTF-8). Characters that no piece covers become spans of `unknown_id`. Linear
// in the text times the number of pieces that start at one place.
std::vector<UnigramSpan> BestSegmentation(std::string_view text, const UnigramPieces& pieces);

}  // namespace nibble::engine
