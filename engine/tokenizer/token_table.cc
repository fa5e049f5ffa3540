// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/token_table.h"

#include "base/utf8.h"

namespace nibble::engine {

void TableTokenizer::SetToken(int32_t id, std::string_view token, bool special) {
  const auto index = static_cast<size_t>(id);
  if (index >= tokens_.size()) tokens_.resize(index + 1);
  tokens_[index] = {std::string(token), true, special};
  ids_.insert_or_assign(std::string(token), id);
}

bool TableTokenizer::HasToken(int32_t id) const {
  return id >= 0 && id < vocab_size() && tokens_[static_cast<size_t>(id)].exists;
}

bool TableTokenizer::IsSpecial(int32_t id) const {
  return HasToken(id) && tokens_[static_cast<size_t>(id)].special;
}

std::optional<int32_t> TableTokenizer::TokenToId(std::string_view token) const {
  const auto found = ids_.find(std::string(token));
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

std::string TableTokenizer::IdToToken(int32_t id) const {
  return HasToken(id) ? tokens_[static_cast<size_t>(id)].token : std::string();
}

absl::StatusOr<std::string> TableTokenizer::Decode(std::span<const int32_t> ids,
                                                   bool skip_special_tokens) const {
  TextStart start;
  std::string bytes;
  for (size_t index = 0; index < ids.size(); ++index) {
    const int32_t id = ids[index];
    if (id < 0 || id >= vocab_size()) {
      return InvalidArgument("token id {} at {} is outside the vocabulary of {}", id, index,
                             vocab_size());
    }
    if (skip_special_tokens && IsSpecial(id)) continue;
    AppendTokenText(id, &start, &bytes);
  }
  return ReplaceInvalidUtf8(bytes);
}

}  // namespace nibble::engine
