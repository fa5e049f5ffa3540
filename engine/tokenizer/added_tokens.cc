// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/added_tokens.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/tokenizer/unicode.h"

namespace nibble::engine {
namespace {

// Where the white space that ends `text[0, end)` begins, but not before `limit`.
size_t SkipBlanksLeft(std::string_view text, size_t limit, size_t end) {
  while (end > limit) {
    const char32_t last = LastCharacter(text.substr(0, end));
    if (!IsWhitespace(last)) break;
    end -= ToUtf8(last).size();
  }
  return std::max(end, limit);
}

size_t SkipBlanksRight(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t next = begin;
    if (!IsWhitespace(NextCharacter(text, &next))) break;
    begin = next;
  }
  return begin;
}

bool WithinWord(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && IsWord(LastCharacter(text.substr(0, begin)))) return true;
  return end < text.size() && IsWord(NextCharacter(text, &end));
}

}  // namespace

absl::StatusOr<AddedToken> AddedToken::Parse(const JsonNode& node, int32_t id) {
  AddedToken token;
  token.id = id;
  NIBBLE_ASSIGN_OR_RETURN(token.content, node["content"].String());
  NIBBLE_ASSIGN_OR_RETURN(token.special, node["special"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(token.single_word, node["single_word"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(token.lstrip, node["lstrip"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(token.rstrip, node["rstrip"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(token.normalized, node["normalized"].BoolOr(!token.special));
  return token;
}

absl::Status AddedTokens::Add(AddedToken token, const Normalizer* normalizer) {
  if (const AddedToken* other = FindById(token.id); other != nullptr) {
    return InvalidArgument("added tokens \"{}\" and \"{}\" share id {}", other->content,
                           token.content, token.id);
  }
  if (const AddedToken* other = FindByContent(token.content); other != nullptr) {
    return InvalidArgument("added token \"{}\" has ids {} and {}", token.content, other->id,
                           token.id);
  }
  const auto index = static_cast<int32_t>(tokens_.size());
  contents_.Insert(token.content, index);
  by_id_.emplace(token.id, index);
  if (!token.normalized) {
    raw_.Insert(token.content, index);
  } else if (normalizer == nullptr) {
    normalized_.Insert(token.content, index);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const std::string form,
                            normalizer->Apply(token.content, TextLimit(token.content.size())));
    normalized_.Insert(form, index);
  }
  tokens_.push_back(std::move(token));
  return absl::OkStatus();
}

const AddedToken* AddedTokens::FindById(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[static_cast<size_t>(found->second)];
}

const AddedToken* AddedTokens::FindByContent(std::string_view content) const {
  const ByteTrie::Found found = contents_.LongestPrefix(content);
  if (found.length == 0 || found.length != content.size()) return nullptr;
  return &tokens_[static_cast<size_t>(found.value)];
}

std::vector<TextPart> AddedTokens::Cut(std::string_view text, const ByteTrie& trie) const {
  std::vector<TextPart> parts;
  size_t previous_end = 0;
  if (!trie.empty()) {
    for (size_t pos = 0; pos < text.size();) {
      const ByteTrie::Found found = trie.LongestPrefix(text.substr(pos));
      if (found.length == 0) {
        ++pos;  // no key begins within a character
        continue;
      }
      const AddedToken& token = tokens_[static_cast<size_t>(found.value)];
      size_t begin = pos;
      size_t end = pos + found.length;
      pos = end;  // a match that is discarded below still hides what lies under it
      // Swallowed white space can hide later matches, but the search goes on in it, as in the
      // library; a token found there begins where the one before it ended.
      if (token.single_word && WithinWord(text, begin, end)) continue;
      if (token.lstrip) begin = SkipBlanksLeft(text, std::min(previous_end, begin), begin);
      if (token.rstrip) end = SkipBlanksRight(text, end);
      if (previous_end < begin) parts.push_back({previous_end, begin, -1});
      parts.push_back({begin, end, token.id});
      previous_end = end;
    }
  }
  if (previous_end < text.size()) parts.push_back({previous_end, text.size(), -1});
  return parts;
}

}  // namespace nibble::engine
