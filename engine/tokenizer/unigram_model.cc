// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Unigram as tokenizer.json describes it: a list of [piece, score]; a piece's id is its place.
#include <algorithm>
#include <cmath>
#include <utility>

#include "nlohmann/json.hpp"

#include "engine/tokenizer/token_model.h"
#include "engine/tokenizer/unigram_lattice.h"

namespace nibble::engine {
namespace {

class UnigramModel : public TokenModel {
 public:
  UnigramModel(UnigramPieces pieces, std::vector<int32_t> byte_ids)
      : pieces_(std::move(pieces)), byte_ids_(std::move(byte_ids)) {}

  absl::Status Tokenize(std::string_view piece, std::vector<int32_t>* ids) const override {
    size_t unknown_bytes = 0;  // a run of unknown characters is one token
    for (const UnigramSpan& span : BestSegmentation(piece, pieces_)) {
      if (span.id == pieces_.unknown_id) {
        unknown_bytes += span.length;
        continue;
      }
      NIBBLE_RETURN_IF_ERROR(
          AddUnknown(piece.substr(span.begin - unknown_bytes, unknown_bytes), ids));
      unknown_bytes = 0;
      ids->push_back(span.id);
    }
    return AddUnknown(piece.substr(piece.size() - unknown_bytes), ids);
  }

 private:
  absl::Status AddUnknown(std::string_view bytes, std::vector<int32_t>* ids) const {
    if (bytes.empty()) return absl::OkStatus();
    const auto id_of = [this](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
    if (!byte_ids_.empty() &&
        std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return id_of(byte) >= 0; })) {
      for (const char byte : bytes) ids->push_back(id_of(byte));
      return absl::OkStatus();
    }
    if (pieces_.unknown_id < 0) {
      return InvalidArgument("\"{}\" has no token and the vocabulary no unknown token", bytes);
    }
    ids->push_back(pieces_.unknown_id);
    return absl::OkStatus();
  }

  UnigramPieces pieces_;
  std::vector<int32_t> byte_ids_;  // empty without byte fallback
};

}  // namespace

absl::Status LoadUnigram(const JsonNode& node, LoadedModel* loaded) {
  const JsonNode vocab = node["vocab"];
  if (!vocab.is_array() || vocab.raw().empty()) return vocab.Error("want [[piece, score], ...]");
  const auto count = static_cast<int64_t>(vocab.raw().size());
  if (count > kMaxTokenId) {
    return vocab.Error(fmt::format("{} pieces, the limit is {}", count, kMaxTokenId));
  }
  UnigramPieces pieces;
  double lowest = INFINITY;
  for (int64_t id = 0; id < count; ++id) {
    const nlohmann::json& entry = vocab.raw()[static_cast<size_t>(id)];
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      return InvalidArgument("{}[{}]: want [piece, score]", vocab.path(), id);
    }
    const auto& piece = entry[0].get_ref<const std::string&>();
    const double score = entry[1].get<double>();
    if (!std::isfinite(score)) return InvalidArgument("{}[{}]: score {}", vocab.path(), id, score);
    if (!loaded->vocabulary.Add(piece, static_cast<int32_t>(id))) {
      return InvalidArgument("{}[{}]: piece \"{}\" is there twice", vocab.path(), id, piece);
    }
    pieces.trie.Insert(piece, static_cast<int32_t>(id));
    pieces.scores.push_back(score);
    lowest = std::min(lowest, score);
  }
  pieces.unknown_score = lowest - kUnknownPenalty;
  if (node["unk_id"].exists()) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t unk_id, node["unk_id"].Int(0, count - 1));
    pieces.unknown_id = static_cast<int32_t>(unk_id);
  }
  NIBBLE_ASSIGN_OR_RETURN(const bool byte_fallback, node["byte_fallback"].BoolOr(false));
  loaded->model = std::make_unique<UnigramModel>(
      std::move(pieces), byte_fallback ? loaded->vocabulary.ByteTokens() : std::vector<int32_t>());
  return absl::OkStatus();
}

}  // namespace nibble::engine
