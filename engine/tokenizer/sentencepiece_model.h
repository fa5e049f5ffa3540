// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// tokenizer.model: the contents of a SentencePiece model file (sentencepiece_model.proto).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

enum class PieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct SentencePiece {
  std::string piece;
  float score = 0.0F;
  PieceType type = PieceType::kNormal;
};

struct SentencePieceModel {
  enum class Algorithm { kUnigram, kBpe };

  std::vector<SentencePiece> pieces;  // an id is a place in it
  Algorithm algorithm = Algorithm::kUnigram;
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  int32_t unk_id = 0;  // of the piece of type kUnknown
  int32_t bos_id = -1;
  int32_t eos_id = -1;
  std::string charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;

  // INVALID_ARGUMENT names the broken or unsupported part; byte positions count within the message
  // that is named.
  static absl::StatusOr<SentencePieceModel> Parse(std::string_view file);
};

}  // namespace nibble::engine
