// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The half of a Tokenizer that both file formats share: what an id is and what it decodes to.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/tokenizer/token_text.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::engine {

// Filled while loading, immutable afterwards.
class TableTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     bool skip_special_tokens) const override;
  std::string TokenBytes(int32_t id) const override { return std::string(text_.Middle(id)); }
  void AppendTokenText(int32_t id, TextStart* start, std::string* bytes) const override {
    text_.Append(id, start, bytes);
  }
  bool IsSpecial(int32_t id) const override;
  std::optional<int32_t> TokenToId(std::string_view token) const override;
  std::string IdToToken(int32_t id) const override;
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }

 protected:
  // A later call for the same id replaces the token.
  void SetToken(int32_t id, std::string_view token, bool special);
  void SetText(TokenText text) { text_ = std::move(text); }
  bool HasToken(int32_t id) const;

 private:
  struct Entry {
    std::string token;
    bool exists = false;
    bool special = false;
  };
  std::vector<Entry> tokens_;  // by id
  std::unordered_map<std::string, int32_t> ids_;
  TokenText text_;
};

}  // namespace nibble::engine
