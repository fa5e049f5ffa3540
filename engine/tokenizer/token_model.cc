// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/token_model.h"

#include <utility>

namespace nibble::engine {

bool Vocabulary::Add(std::string_view token, int32_t id) {
  const auto index = static_cast<size_t>(id);
  if (index < by_id_.size() && by_id_[index] != nullptr) return false;
  if (ids_.contains(token)) return false;
  if (index >= by_id_.size()) by_id_.resize(index + 1);
  by_id_[index] = std::make_unique<std::string>(token);
  ids_.emplace(*by_id_[index], id);
  return true;
}

int32_t Vocabulary::Find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? -1 : found->second;
}

const std::string* Vocabulary::Token(int32_t id) const {
  return id < 0 || id >= size() ? nullptr : by_id_[static_cast<size_t>(id)].get();
}

std::vector<int32_t> Vocabulary::ByteTokens() const {
  std::vector<int32_t> ids;
  for (int byte = 0; byte < 256; ++byte) ids.push_back(Find(fmt::format("<0x{:02X}>", byte)));
  return ids;
}

int ByteOfToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadModel(const JsonNode& node) {
  if (!node.is_object()) return node.Error("want an object");
  std::string type;
  if (node["type"].exists()) {
    NIBBLE_ASSIGN_OR_RETURN(type, node["type"].String());
  } else {
    type =
        node["merges"].exists() ? "BPE" : "without a type";  // files of the library's first years
  }
  auto loaded = std::make_unique<LoadedModel>();
  if (type == "BPE") {
    NIBBLE_RETURN_IF_ERROR(LoadBpe(node, loaded.get()));
  } else if (type == "Unigram") {
    NIBBLE_RETURN_IF_ERROR(LoadUnigram(node, loaded.get()));
  } else {
    return node.Error(fmt::format("model \"{}\" is not supported (BPE and Unigram are)", type));
  }
  return loaded;
}

}  // namespace nibble::engine
