// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What turns one piece of text into token ids: BPE or Unigram, from tokenizer.json or
// SentencePiece.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "engine/tokenizer/json_node.h"

namespace nibble::engine {

// Largest id a file may give a token: the biggest vocabularies in use have 262,144.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 22) - 1;

// Tokens and their ids, both ways. Ids may have gaps.
class Vocabulary {
 public:
  // False when the token or the id is already there.
  bool Add(std::string_view token, int32_t id);
  // -1 when there is no such token.
  int32_t Find(std::string_view token) const;
  // The token of `id`; null when it has none.
  const std::string* Token(int32_t id) const;
  int64_t size() const { return static_cast<int64_t>(by_id_.size()); }  // largest id + 1
  // Ids of "<0x00>" ... "<0xFF>", -1 for a byte without a token.
  std::vector<int32_t> ByteTokens() const;

 private:
  std::unordered_map<std::string_view, int32_t> ids_;  // views into by_id_
  std::vector<std::unique_ptr<std::string>> by_id_;
};

// The byte a token "<0x0A>" stands for, or -1.
int ByteOfToken(std::string_view token);

// Immutable; thread-safe.
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of `piece` (valid UTF-8, not empty).
  virtual absl::Status Tokenize(std::string_view piece, std::vector<int32_t>* ids) const = 0;
};

struct LoadedModel {
  Vocabulary vocabulary;
  std::unique_ptr<TokenModel> model;  // may refer into `vocabulary`'s tokens
};

// "model" of tokenizer.json. Types other than BPE and Unigram are refused by name.
absl::StatusOr<std::unique_ptr<LoadedModel>> LoadModel(const JsonNode& node);

// The two kinds, for LoadModel(): they fill `loaded`.
absl::Status LoadBpe(const JsonNode& node, LoadedModel* loaded);
absl::Status LoadUnigram(const JsonNode& node, LoadedModel* loaded);

}  // namespace nibble::engine
