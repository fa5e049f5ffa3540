// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// BPE as tokenizer.json describes it: a vocabulary and a ranked list of merges.
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "nlohmann/json.hpp"

#include "engine/tokenizer/bpe_merge.h"
#include "engine/tokenizer/token_model.h"
#include "engine/tokenizer/unicode.h"

namespace nibble::engine {
namespace {

// Words up to this length are merged by scanning for the best pair, which beats a heap.
constexpr size_t kShortWord = 24;

struct Merge {
  uint32_t rank = 0;
  int32_t id = -1;
};

uint64_t PairKey(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

class BpeModel : public TokenModel {
 public:
  explicit BpeModel(const Vocabulary* vocabulary) : vocabulary_(vocabulary) {}

  absl::Status LoadOptions(const JsonNode& node);
  absl::Status LoadMerges(const JsonNode& node);
  absl::Status Tokenize(std::string_view piece, std::vector<int32_t>* ids) const override;

 private:
  absl::StatusOr<std::pair<std::string, std::string>> ReadMerge(const JsonNode& node,
                                                                size_t index) const;
  absl::Status Split(std::string_view piece, std::vector<BpeSymbol>* symbols) const;
  void MergeShort(std::vector<BpeSymbol>* symbols) const;
  const Merge* Find(int32_t left, int32_t right) const {
    const auto found = merges_.find(PairKey(left, right));
    return found == merges_.end() ? nullptr : &found->second;
  }
  int32_t FindCharacter(char32_t character, std::string_view bytes) const {
    return character < short_ids_.size() ? short_ids_[character] : vocabulary_->Find(bytes);
  }

  const Vocabulary* vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
  std::array<int32_t, 512> short_ids_ = {};  // tokens of one character below 512, -1 for none
  std::vector<int32_t> byte_ids_;            // empty without byte fallback
  std::string prefix_;                       // continuing_subword_prefix
  std::string suffix_;                       // end_of_word_suffix
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
};

absl::Status BpeModel::LoadOptions(const JsonNode& node) {
  const JsonNode unk = node["unk_token"];
  if (unk.exists()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string token, unk.String());
    unk_id_ = vocabulary_->Find(token);
    if (unk_id_ < 0) return unk.Error(fmt::format("\"{}\" is not in the vocabulary", token));
  }
  NIBBLE_ASSIGN_OR_RETURN(fuse_unk_, node["fuse_unk"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(ignore_merges_, node["ignore_merges"].BoolOr(false));
  NIBBLE_ASSIGN_OR_RETURN(const bool byte_fallback, node["byte_fallback"].BoolOr(false));
  if (byte_fallback) byte_ids_ = vocabulary_->ByteTokens();
  // Dropout is for training; a library that applied it would answer at random.
  const JsonNode dropout = node["dropout"];
  if (dropout.exists()) {
    NIBBLE_ASSIGN_OR_RETURN(const double rate, dropout.Number());
    if (rate != 0.0) return dropout.Error(fmt::format("{} is not supported (0 is)", rate));
  }
  if (node["continuing_subword_prefix"].exists()) {
    NIBBLE_ASSIGN_OR_RETURN(prefix_, node["continuing_subword_prefix"].String());
  }
  if (node["end_of_word_suffix"].exists()) {
    NIBBLE_ASSIGN_OR_RETURN(suffix_, node["end_of_word_suffix"].String());
  }
  for (size_t character = 0; character < short_ids_.size(); ++character) {
    short_ids_[character] = vocabulary_->Find(ToUtf8(static_cast<char32_t>(character)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::pair<std::string, std::string>> BpeModel::ReadMerge(const JsonNode& node,
                                                                        size_t index) const {
  const nlohmann::json& merge = node.raw()[index];
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return std::pair(merge[0].get<std::string>(), merge[1].get<std::string>());
  }
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const size_t blank = text.find(' ');
    if (blank != std::string::npos && text.find(' ', blank + 1) == std::string::npos) {
      return std::pair(text.substr(0, blank), text.substr(blank + 1));
    }
  }
  return InvalidArgument("{}[{}]: want \"a b\" or [\"a\", \"b\"]", node.path(), index);
}

absl::Status BpeModel::LoadMerges(const JsonNode& node) {
  if (!node.is_array()) return node.Error("want an array");
  const size_t count = node.raw().size();
  merges_.reserve(count);
  for (size_t index = 0; index < count; ++index) {
    NIBBLE_ASSIGN_OR_RETURN(const auto merge, ReadMerge(node, index));
    const auto& [left, right] = merge;
    const int32_t left_id = vocabulary_->Find(left);
    const int32_t right_id = vocabulary_->Find(right);
    if (left_id < 0 || right_id < 0) {
      return InvalidArgument("{}[{}]: \"{}\" is not in the vocabulary", node.path(), index,
                             left_id < 0 ? left : right);
    }
    if (!right.starts_with(prefix_)) {
      return InvalidArgument("{}[{}]: \"{}\" lacks the prefix \"{}\"", node.path(), index, right,
                             prefix_);
    }
    const std::string joined = left + right.substr(prefix_.size());
    const int32_t id = vocabulary_->Find(joined);
    if (id < 0) {
      return InvalidArgument("{}[{}]: its result \"{}\" is not in the vocabulary", node.path(),
                             index, joined);
    }
    merges_[PairKey(left_id, right_id)] = {static_cast<uint32_t>(index), id};
  }
  return absl::OkStatus();
}

// Characters that have a token become it; others their bytes' tokens or the unknown token, or they
// vanish where the file has neither (as in the library).
absl::Status BpeModel::Split(std::string_view piece, std::vector<BpeSymbol>* symbols) const {
  BpeSymbol unknown;  // a run of unknown characters not yet written
  const auto flush_unknown = [&] {
    if (unknown.length > 0) symbols->push_back(unknown);
    unknown = {};
  };
  std::string affixed;
  for (size_t pos = 0; pos < piece.size();) {
    const size_t begin = pos;
    const char32_t character = NextCharacter(piece, &pos);
    std::string_view bytes = piece.substr(begin, pos - begin);
    const bool affix = (begin > 0 && !prefix_.empty()) || (pos == piece.size() && !suffix_.empty());
    if (affix) {
      affixed = fmt::format("{}{}{}", begin > 0 ? prefix_ : "", bytes,
                            pos == piece.size() ? suffix_ : "");
      bytes = affixed;
    }
    const int32_t id = affix ? vocabulary_->Find(bytes) : FindCharacter(character, bytes);
    if (id >= 0) {
      flush_unknown();
      symbols->push_back({id, begin, pos - begin});
      continue;
    }
    if (!byte_ids_.empty()) {
      bool all = true;
      for (const char byte : bytes) all = all && byte_ids_[static_cast<uint8_t>(byte)] >= 0;
      if (all) {
        for (const char byte : bytes) {
          symbols->push_back({byte_ids_[static_cast<uint8_t>(byte)], begin, 1});
        }
        continue;
      }
    }
    if (unk_id_ < 0) continue;
    if (!fuse_unk_) flush_unknown();
    unknown = {unk_id_, begin, unknown.length + pos - begin};
  }
  flush_unknown();
  return absl::OkStatus();
}

void BpeModel::MergeShort(std::vector<BpeSymbol>* symbols) const {
  std::array<Merge, kShortWord> pair = {};  // merge of symbols i and i + 1; id -1: none
  const auto look_up = [&](size_t index) {
    const Merge* merge = Find((*symbols)[index].id, (*symbols)[index + 1].id);
    pair[index] = merge == nullptr ? Merge{} : *merge;
  };
  size_t count = symbols->size();
  for (size_t index = 0; index + 1 < count; ++index) look_up(index);
  while (count > 1) {
    size_t best = count;
    for (size_t index = 0; index + 1 < count; ++index) {
      if (pair[index].id >= 0 && (best == count || pair[index].rank < pair[best].rank)) {
        best = index;
      }
    }
    if (best == count) break;
    (*symbols)[best].id = pair[best].id;
    for (size_t index = best + 1; index + 1 < count; ++index) {
      (*symbols)[index] = (*symbols)[index + 1];
      pair[index] = pair[index + 1];
    }
    --count;
    if (best + 1 < count) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  symbols->resize(count);
}

absl::Status BpeModel::Tokenize(std::string_view piece, std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    const int32_t id = vocabulary_->Find(piece);
    if (id >= 0) {
      ids->push_back(id);
      return absl::OkStatus();
    }
  }
  std::vector<BpeSymbol> symbols;
  symbols.reserve(piece.size());
  NIBBLE_RETURN_IF_ERROR(Split(piece, &symbols));
  if (symbols.size() <= kShortWord) {
    MergeShort(&symbols);
  } else {
    const auto find = [this](const BpeSymbol& left, const BpeSymbol& right) -> BpeMerge {
      const Merge* merge = Find(left.id, right.id);
      if (merge == nullptr) return {};
      return {static_cast<double>(merge->rank), merge->id, true};
    };
    MergeSymbols(&symbols, find, [](const BpeSymbol&, const BpeSymbol&, int32_t) {});
  }
  for (const BpeSymbol& symbol : symbols) ids->push_back(symbol.id);
  return absl::OkStatus();
}

}  // namespace

absl::Status LoadBpe(const JsonNode& node, LoadedModel* loaded) {
  const JsonNode vocab = node["vocab"];
  if (!vocab.is_object()) return vocab.Error("want an object of tokens and ids");
  for (const auto& [token, id] : vocab.raw().items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxTokenId) {
      return InvalidArgument("{}: token \"{}\" has id {}, want 0..{}", vocab.path(), token,
                             id.dump(), kMaxTokenId);
    }
    if (!loaded->vocabulary.Add(token, id.get<int32_t>())) {
      return InvalidArgument("{}: tokens \"{}\" and \"{}\" share id {}", vocab.path(),
                             *loaded->vocabulary.Token(id.get<int32_t>()), token, id.dump());
    }
  }
  auto model = std::make_unique<BpeModel>(&loaded->vocabulary);
  NIBBLE_RETURN_IF_ERROR(model->LoadOptions(node));
  NIBBLE_RETURN_IF_ERROR(model->LoadMerges(node["merges"]));
  loaded->model = std::move(model);
  return absl::OkStatus();
}

}  // namespace nibble::engine
