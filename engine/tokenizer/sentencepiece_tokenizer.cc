// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/sentencepiece_tokenizer.h"

#include <optional>
#include <utility>

#include "base/utf8.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/regex.h"
#include "engine/tokenizer/sentencepiece_encoder.h"
#include "engine/tokenizer/sentencepiece_model.h"
#include "engine/tokenizer/token_model.h"
#include "engine/tokenizer/token_table.h"
#include "engine/tokenizer/tokenizer_config.h"
#include "engine/tokenizer/unicode.h"

namespace nibble::engine {
namespace {

class SentencePieceTokenizer : public TableTokenizer {
 public:
  explicit SentencePieceTokenizer(SentencePieceEncoder encoder) : encoder_(std::move(encoder)) {}

  absl::Status Load(const JsonNode& config);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override;

 private:
  absl::Status LoadAddedTokens(const JsonNode& config);
  void LoadTable();
  // The id of config[key], or `absent`.
  absl::StatusOr<int32_t> SpecialId(const JsonNode& node, int32_t absent) const;

  SentencePieceEncoder encoder_;
  AddedTokens added_;
  int32_t bos_id_ = -1;  // put in front with add_special_tokens; -1: none
  int32_t eos_id_ = -1;
  // Whether a text after a special token gets a leading blank like the first one. Transformers did
  // so at first and calls it "legacy"; still its default.
  bool blank_after_special_ = true;
};

absl::Status SentencePieceTokenizer::LoadAddedTokens(const JsonNode& config) {
  const std::vector<SentencePiece>& pieces = encoder_.model().pieces;
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<AddedToken> tokens, ReadAddedTokensDecoder(config));
  for (AddedToken token : tokens) {
    const auto index = static_cast<size_t>(token.id);
    const JsonNode node = config["added_tokens_decoder"];
    if (token.content.empty()) continue;
    if (index < pieces.size() && pieces[index].piece != token.content) {
      return node.Error(fmt::format("\"{}\" has id {}, which is \"{}\" in tokenizer.model",
                                    token.content, token.id, pieces[index].piece));
    }
    token.normalized = false;  // the map's forms are the model's own matter
    const absl::Status status = added_.Add(std::move(token), nullptr);
    if (!status.ok()) return node.Error(std::string(status.message()));
  }
  for (size_t index = 0; index < pieces.size(); ++index) {
    const SentencePiece& piece = pieces[index];
    const auto id = static_cast<int32_t>(index);
    if (piece.type != PieceType::kControl && piece.type != PieceType::kUnknown) continue;
    if (added_.FindById(id) != nullptr) continue;
    AddedToken token;
    token.content = piece.piece;
    token.id = id;
    token.special = true;
    const absl::Status status = added_.Add(std::move(token), nullptr);
    if (!status.ok()) return Annotate(status, "tokenizer.model");
  }
  return absl::OkStatus();
}

void SentencePieceTokenizer::LoadTable() {
  const SentencePieceModel& model = encoder_.model();
  LeadingText leading;
  if (model.add_dummy_prefix || model.remove_extra_whitespaces) {
    leading.rule = LeadingRule::kLeadingBlank;
    leading.max_stripped = model.remove_extra_whitespaces ? 0 : 1;
  }
  TokenText text(leading);
  for (size_t index = 0; index < model.pieces.size(); ++index) {
    const SentencePiece& piece = model.pieces[index];
    const auto id = static_cast<int32_t>(index);
    SetToken(id, piece.piece, false);
    if (piece.type == PieceType::kByte) {
      const char byte = static_cast<char>(ByteOfToken(piece.piece));
      text.Set(id, std::string_view(&byte, 1), std::string_view(&byte, 1));
      continue;
    }
    std::string middle;
    std::vector<Span> spans;
    FindAllPlain(piece.piece, kMetaspace, &spans);
    for (const Span& span : spans) {
      middle += span.is_match ? " " : piece.piece.substr(span.begin, span.end - span.begin);
    }
    const bool has_blank = piece.piece.starts_with(kMetaspace);
    text.Set(id, middle, has_blank ? std::string_view(middle).substr(1) : middle);
  }
  for (const AddedToken& token : added_.tokens()) {
    SetToken(token.id, token.content, token.special);
    text.Set(token.id, token.content, token.content);
  }
  SetText(std::move(text));
}

absl::StatusOr<int32_t> SentencePieceTokenizer::SpecialId(const JsonNode& node,
                                                          int32_t absent) const {
  NIBBLE_ASSIGN_OR_RETURN(const std::string name, ReadTokenName(node));
  if (name.empty()) return absent;
  const std::optional<int32_t> id = TokenToId(name);
  if (!id.has_value()) return node.Error(fmt::format("\"{}\" is no token", name));
  return *id;
}

absl::Status SentencePieceTokenizer::Load(const JsonNode& config) {
  if (!config.is_object()) return config.Error("want an object");
  NIBBLE_RETURN_IF_ERROR(LoadAddedTokens(config));
  LoadTable();
  NIBBLE_ASSIGN_OR_RETURN(blank_after_special_, config["legacy"].BoolOr(true));
  NIBBLE_ASSIGN_OR_RETURN(const bool add_bos, config["add_bos_token"].BoolOr(true));
  NIBBLE_ASSIGN_OR_RETURN(const bool add_eos, config["add_eos_token"].BoolOr(false));
  if (add_bos) {
    NIBBLE_ASSIGN_OR_RETURN(bos_id_, SpecialId(config["bos_token"], encoder_.model().bos_id));
  }
  if (add_eos) {
    NIBBLE_ASSIGN_OR_RETURN(eos_id_, SpecialId(config["eos_token"], encoder_.model().eos_id));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::Encode(std::string_view text,
                                                                    bool add_special_tokens) const {
  if (!IsValidUtf8(text)) return InvalidArgument("the text is not valid UTF-8");
  std::vector<int32_t> ids;
  TextLimit limit(text.size());
  if (add_special_tokens && bos_id_ >= 0) ids.push_back(bos_id_);
  for (const TextPart& part : added_.CutRaw(text)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      NIBBLE_RETURN_IF_ERROR(encoder_.Encode(text.substr(part.begin, part.end - part.begin),
                                             part.begin == 0 || blank_after_special_, &limit,
                                             &ids));
    }
  }
  if (add_special_tokens && eos_id_ >= 0) ids.push_back(eos_id_);
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(std::string_view model_file,
                                                             std::string_view config) {
  absl::StatusOr<SentencePieceModel> model = SentencePieceModel::Parse(model_file);
  if (!model.ok()) return Annotate(model.status(), "tokenizer.model");
  absl::StatusOr<SentencePieceEncoder> encoder =
      SentencePieceEncoder::Create(std::move(model).value());
  if (!encoder.ok()) return Annotate(encoder.status(), "tokenizer.model");
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json document, ParseTokenizerConfig(config));
  auto tokenizer = std::make_unique<SentencePieceTokenizer>(std::move(encoder).value());
  NIBBLE_RETURN_IF_ERROR(tokenizer->Load(JsonNode(&document, "tokenizer_config.json: ")));
  return tokenizer;
}

}  // namespace nibble::engine
