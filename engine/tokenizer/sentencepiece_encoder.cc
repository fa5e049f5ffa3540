// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/sentencepiece_encoder.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "engine/tokenizer/bpe_merge.h"
#include "engine/tokenizer/token_model.h"
#include "engine/tokenizer/unicode.h"

namespace nibble::engine {

absl::StatusOr<SentencePieceEncoder> SentencePieceEncoder::Create(SentencePieceModel model) {
  SentencePieceEncoder encoder;
  encoder.model_ = std::move(model);
  const std::vector<SentencePiece>& pieces = encoder.model_.pieces;
  absl::StatusOr<Charsmap> charsmap = Charsmap::Parse(encoder.model_.charsmap);
  if (!charsmap.ok()) return Annotate(charsmap.status(), "normalizer_spec.precompiled_charsmap");
  encoder.charsmap_ = std::move(charsmap).value();
  encoder.blank_ = encoder.model_.escape_whitespaces ? kMetaspace : std::string_view(" ");
  encoder.byte_ids_.assign(256, -1);
  float lowest = 0.0F;
  float highest = 0.0F;
  bool first = true;
  for (const SentencePiece& piece : pieces) {
    if (piece.type != PieceType::kNormal) continue;
    lowest = first ? piece.score : std::min(lowest, piece.score);
    highest = first ? piece.score : std::max(highest, piece.score);
    first = false;
  }
  UnigramPieces& unigram = encoder.unigram_;
  unigram.single_precision = true;
  unigram.unknown_id = encoder.model_.unk_id;
  unigram.unknown_score =
      static_cast<double>(static_cast<float>(static_cast<double>(lowest) - kUnknownPenalty));
  const bool is_bpe = encoder.model_.algorithm == SentencePieceModel::Algorithm::kBpe;
  for (size_t index = 0; index < pieces.size(); ++index) {
    const SentencePiece& piece = pieces[index];
    const auto id = static_cast<int32_t>(index);
    double score = static_cast<double>(piece.score);
    if (piece.type == PieceType::kUserDefined) {
      encoder.user_defined_.Insert(piece.piece, id);
      // Better than any way to cut it, and a longer one better than two shorter.
      score = static_cast<double>(static_cast<float>(piece.piece.size()) * highest) - 0.1;
    }
    unigram.scores.push_back(score);
    if (piece.type == PieceType::kByte) {
      encoder.byte_ids_[static_cast<size_t>(ByteOfToken(piece.piece))] = id;
    }
    const bool usable = piece.type == PieceType::kNormal || piece.type == PieceType::kUserDefined;
    if (usable && !is_bpe) unigram.trie.Insert(piece.piece, id);
    if (is_bpe && (usable || piece.type == PieceType::kUnused)) {
      encoder.mergeable_.emplace(piece.piece, id);
      encoder.longest_piece_ = std::max(encoder.longest_piece_, piece.piece.size());
    }
  }
  return encoder;
}

Charsmap::Match SentencePieceEncoder::NormalizePrefix(std::string_view text) const {
  if (!user_defined_.empty()) {
    const size_t length = user_defined_.LongestPrefix(text).length;
    if (length > 0) return {length, text.substr(0, length)};
  }
  const Charsmap::Match match = charsmap_.LongestPrefix(text);
  if (match.length > 0) return match;
  const size_t length = std::min(Utf8Length(text[0]), text.size());
  return {length, text.substr(0, length)};
}

absl::StatusOr<std::string> SentencePieceEncoder::Normalize(std::string_view text,
                                                            bool dummy_prefix,
                                                            const TextLimit& limit) const {
  if (model_.remove_extra_whitespaces) {
    while (!text.empty()) {
      const Charsmap::Match match = NormalizePrefix(text);
      if (match.replacement != " ") break;
      text.remove_prefix(match.length);
    }
  }
  std::string result;
  if (text.empty()) return result;
  result.reserve(text.size() * 3);
  const bool add_blank = model_.add_dummy_prefix && dummy_prefix;
  if (add_blank && !model_.whitespace_as_suffix) result += blank_;
  bool after_space = model_.remove_extra_whitespaces;
  while (!text.empty()) {
    const Charsmap::Match match = NormalizePrefix(text);
    text.remove_prefix(match.length);
    std::string_view part = match.replacement;
    while (after_space && part.starts_with(' ')) part.remove_prefix(1);
    for (const char byte : part) {
      if (byte == ' ') {
        result += blank_;
      } else {
        result += byte;
      }
    }
    NIBBLE_RETURN_IF_ERROR(limit.Check(result.size()));
    if (!part.empty()) after_space = part.ends_with(' ');
    if (!model_.remove_extra_whitespaces) after_space = false;
  }
  if (model_.remove_extra_whitespaces) {
    while (result.ends_with(blank_)) result.resize(result.size() - blank_.size());
  }
  if (add_blank && model_.whitespace_as_suffix) result += blank_;
  return result;
}

std::vector<UnigramSpan> SentencePieceEncoder::SegmentBpe(std::string_view text) const {
  const auto find_piece = [this](std::string_view piece) {
    const auto found = mergeable_.find(piece);
    return found == mergeable_.end() ? -1 : found->second;
  };
  std::vector<BpeSymbol> symbols;
  for (size_t begin = 0; begin < text.size();) {
    const ByteTrie::Found kept = user_defined_.LongestPrefix(text.substr(begin));
    const size_t length =
        kept.length > 0 ? kept.length : std::min(Utf8Length(text[begin]), text.size() - begin);
    symbols.push_back(
        {find_piece(text.substr(begin, length)), begin, length, /*frozen=*/kept.length > 0});
    begin += length;
  }
  // Unused pieces are steps to longer ones; what is left of them at the end is taken apart again.
  std::unordered_map<int32_t, std::pair<BpeSymbol, BpeSymbol>> parts_of_unused;
  const auto is_unused = [this](int32_t id) {
    return id >= 0 && model_.pieces[static_cast<size_t>(id)].type == PieceType::kUnused;
  };
  const auto find = [&](const BpeSymbol& left, const BpeSymbol& right) -> BpeMerge {
    const size_t length = left.length + right.length;
    if (left.frozen || right.frozen || length > longest_piece_) return {};
    const int32_t id = find_piece(text.substr(left.begin, length));
    if (id < 0) return {};
    return {-static_cast<double>(model_.pieces[static_cast<size_t>(id)].score), id, true};
  };
  const auto on_merge = [&](const BpeSymbol& left, const BpeSymbol& right, int32_t id) {
    if (is_unused(id)) parts_of_unused.insert_or_assign(id, std::pair(left, right));
  };
  MergeSymbols(&symbols, find, on_merge);
  std::vector<UnigramSpan> spans;
  // Parts of an unused piece may be unused again; each is shorter, so this ends.
  const std::function<void(size_t, size_t, int32_t)> add = [&](size_t begin, size_t length,
                                                               int32_t id) {
    const auto parts = is_unused(id) ? parts_of_unused.find(id) : parts_of_unused.end();
    if (parts == parts_of_unused.end()) {
      spans.push_back({begin, length, id < 0 ? model_.unk_id : id});
      return;
    }
    const auto [left, right] = parts->second;
    add(begin, left.length, left.id);
    add(begin + left.length, right.length, right.id);
  };
  for (const BpeSymbol& symbol : symbols) add(symbol.begin, symbol.length, symbol.id);
  return spans;
}

absl::Status SentencePieceEncoder::Encode(std::string_view text, bool dummy_prefix,
                                          TextLimit* limit, std::vector<int32_t>* ids) const {
  NIBBLE_ASSIGN_OR_RETURN(const std::string normalized, Normalize(text, dummy_prefix, *limit));
  NIBBLE_RETURN_IF_ERROR(limit->Spend(normalized.size()));
  const bool is_bpe = model_.algorithm == SentencePieceModel::Algorithm::kBpe;
  const std::vector<UnigramSpan> spans =
      is_bpe ? SegmentBpe(normalized) : BestSegmentation(normalized, unigram_);
  bool after_unknown = false;
  for (const UnigramSpan& span : spans) {
    const bool unknown = span.id == model_.unk_id;
    if (unknown && model_.byte_fallback) {
      for (const char byte : std::string_view(normalized).substr(span.begin, span.length)) {
        ids->push_back(byte_ids_[static_cast<uint8_t>(byte)]);
      }
    } else if (!unknown || !after_unknown) {  // a run of unknown characters is one token
      ids->push_back(span.id);
    }
    after_unknown = unknown;
  }
  return absl::OkStatus();
}

}  // namespace nibble::engine
