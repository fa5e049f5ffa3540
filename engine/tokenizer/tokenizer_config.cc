// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/tokenizer_config.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/json.h"
#include "engine/tokenizer/token_model.h"

namespace nibble::engine {

absl::StatusOr<nlohmann::json> ParseTokenizerConfig(std::string_view text) {
  if (text.empty()) return nlohmann::json::object();
  absl::StatusOr<nlohmann::json> document = ParseJson(text, {.max_depth = 32});
  if (!document.ok()) return Annotate(document.status(), "tokenizer_config.json");
  return document;
}

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokensDecoder(const JsonNode& config) {
  std::vector<AddedToken> tokens;
  const JsonNode node = config["added_tokens_decoder"];
  if (!node.exists()) return tokens;
  NIBBLE_ASSIGN_OR_RETURN(const auto members, node.Members());
  for (const auto& [key, member] : members) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id > kMaxTokenId) {
      return node.Error(fmt::format("id \"{}\", want 0..{}", key, kMaxTokenId));
    }
    NIBBLE_ASSIGN_OR_RETURN(AddedToken token, AddedToken::Parse(member, static_cast<int32_t>(id)));
    tokens.push_back(std::move(token));
  }
  std::sort(tokens.begin(), tokens.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return tokens;
}

absl::StatusOr<std::string> ReadTokenName(const JsonNode& node) {
  if (!node.exists()) return std::string();
  if (node.is_string()) return node.String();
  return node["content"].String();
}

}  // namespace nibble::engine
