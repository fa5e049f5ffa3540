// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A tokenizer whose tokens are given byte strings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/utf8.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::testing {

class FakeTokenizer final : public engine::Tokenizer {
 public:
  explicit FakeTokenizer(std::vector<std::string> tokens, std::optional<int32_t> special = {})
      : tokens_(std::move(tokens)), special_(special) {}

  // Token t is the decimal number t and a space.
  static FakeTokenizer Numbers(int32_t vocab_size) {
    std::vector<std::string> tokens;
    for (int32_t t = 0; t < vocab_size; ++t) tokens.push_back(std::to_string(t) + " ");
    return FakeTokenizer(std::move(tokens));
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view, bool) const override {
    return Unimplemented("not needed");
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     bool skip_special_tokens) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (!skip_special_tokens || !IsSpecial(id)) text += TokenBytes(id);
    }
    return ReplaceInvalidUtf8(text);
  }
  std::string TokenBytes(int32_t id) const override {
    return id >= 0 && id < vocab_size() ? tokens_[static_cast<size_t>(id)] : "";
  }
  bool IsSpecial(int32_t id) const override { return special_ == id; }
  std::optional<int32_t> TokenToId(std::string_view) const override { return std::nullopt; }
  std::string IdToToken(int32_t id) const override { return TokenBytes(id); }
  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }

 private:
  std::vector<std::string> tokens_;
  std::optional<int32_t> special_;
};

}  // namespace nibble::testing
