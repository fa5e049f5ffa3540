// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/tokenizer_json.h"

#include <algorithm>
#include <utility>

#include "base/json.h"
#include "base/utf8.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/post_processor.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/token_model.h"
#include "engine/tokenizer/token_table.h"
#include "engine/tokenizer/tokenizer_config.h"

namespace nibble::engine {
namespace {

constexpr JsonLimits kJsonLimits = {.max_bytes = size_t{128} << 20, .max_depth = 32};

class JsonTokenizer : public TableTokenizer {
 public:
  absl::Status Load(const JsonNode& root, const JsonNode& config);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override;

 private:
  absl::Status LoadAddedTokens(const JsonNode& root, const JsonNode& config);
  absl::Status AddToken(AddedToken token, const JsonNode& node);
  // Text between raw added tokens: normalize, cut at normalized added tokens, tokenize the rest.
  absl::Status EncodeText(std::string_view text, bool at_start, TextLimit* limit,
                          std::vector<int32_t>* ids) const;
  absl::Status EncodeWords(std::string_view text, bool at_start, TextLimit* limit,
                           std::vector<int32_t>* ids) const;

  std::unique_ptr<LoadedModel> model_;
  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  PostProcessor post_processor_;
  AddedTokens added_;
};

absl::Status JsonTokenizer::AddToken(AddedToken token, const JsonNode& node) {
  if (token.content.empty()) return absl::OkStatus();  // can match nowhere
  const int32_t known = model_->vocabulary.Find(token.content);
  const std::string* holder = model_->vocabulary.Token(token.id);
  if (known >= 0 && known != token.id) {
    return node.Error(fmt::format("added token \"{}\" has id {}, in the model's vocabulary {}",
                                  token.content, token.id, known));
  }
  if (holder != nullptr && *holder != token.content) {
    return node.Error(fmt::format("added token \"{}\" has id {}, which is \"{}\" in the model",
                                  token.content, token.id, *holder));
  }
  const absl::Status status = added_.Add(std::move(token), normalizer_.get());
  return status.ok() ? status : node.Error(std::string(status.message()));
}

absl::Status JsonTokenizer::LoadAddedTokens(const JsonNode& root, const JsonNode& config) {
  if (root["added_tokens"].exists()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<JsonNode> nodes, root["added_tokens"].Elements());
    for (const JsonNode& node : nodes) {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t id, node["id"].Int(0, kMaxTokenId));
      NIBBLE_ASSIGN_OR_RETURN(AddedToken token, AddedToken::Parse(node, static_cast<int32_t>(id)));
      NIBBLE_RETURN_IF_ERROR(AddToken(std::move(token), node));
    }
  }
  // tokenizer_config.json may know more of them; what both have is as tokenizer.json says.
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<AddedToken> more, ReadAddedTokensDecoder(config));
  for (const AddedToken& token : more) {
    if (added_.FindByContent(token.content) != nullptr) continue;
    NIBBLE_RETURN_IF_ERROR(AddToken(token, config["added_tokens_decoder"]));
  }
  return absl::OkStatus();
}

absl::Status JsonTokenizer::Load(const JsonNode& root, const JsonNode& config) {
  if (!root.is_object()) return root.Error("want an object");
  NIBBLE_ASSIGN_OR_RETURN(model_, LoadModel(root["model"]));
  NIBBLE_ASSIGN_OR_RETURN(normalizer_, CreateNormalizer(root["normalizer"]));
  NIBBLE_ASSIGN_OR_RETURN(pre_tokenizer_, CreatePreTokenizer(root["pre_tokenizer"]));
  NIBBLE_ASSIGN_OR_RETURN(post_processor_, CreatePostProcessor(root["post_processor"]));
  NIBBLE_RETURN_IF_ERROR(LoadAddedTokens(root, config));
  NIBBLE_ASSIGN_OR_RETURN(TokenText text,
                          CreateTokenText(root["decoder"], model_->vocabulary, added_));
  SetText(std::move(text));
  for (int32_t id = 0; id < model_->vocabulary.size(); ++id) {
    if (const std::string* token = model_->vocabulary.Token(id); token != nullptr) {
      SetToken(id, *token, false);
    }
  }
  for (const AddedToken& token : added_.tokens()) SetToken(token.id, token.content, token.special);
  for (const std::vector<int32_t>& ids : {post_processor_.prefix, post_processor_.suffix}) {
    for (const int32_t id : ids) {
      if (!HasToken(id)) {
        return root["post_processor"].Error(fmt::format("id {} is no token's", id));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status JsonTokenizer::EncodeWords(std::string_view text, bool at_start, TextLimit* limit,
                                        std::vector<int32_t>* ids) const {
  if (text.empty()) return absl::OkStatus();
  if (pre_tokenizer_ == nullptr) {
    NIBBLE_RETURN_IF_ERROR(limit->Spend(text.size()));
    return model_->model->Tokenize(text, ids);
  }
  Pieces whole;
  whole.Add(text);
  whole.first_is_at_start = at_start;
  NIBBLE_ASSIGN_OR_RETURN(const Pieces pieces, pre_tokenizer_->Apply(whole, *limit));
  NIBBLE_RETURN_IF_ERROR(limit->Spend(pieces.text.size()));
  for (size_t index = 0; index < pieces.size(); ++index) {
    NIBBLE_RETURN_IF_ERROR(model_->model->Tokenize(pieces[index], ids));
  }
  return absl::OkStatus();
}

absl::Status JsonTokenizer::EncodeText(std::string_view text, bool at_start, TextLimit* limit,
                                       std::vector<int32_t>* ids) const {
  std::string normalized;
  if (normalizer_ != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(normalized, normalizer_->Apply(text, *limit));
    text = normalized;
  }
  for (const TextPart& part : added_.CutNormalized(text)) {
    if (part.id >= 0) {
      ids->push_back(part.id);
    } else {
      NIBBLE_RETURN_IF_ERROR(EncodeWords(text.substr(part.begin, part.end - part.begin),
                                         at_start && part.begin == 0, limit, ids));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> JsonTokenizer::Encode(std::string_view text,
                                                           bool add_special_tokens) const {
  if (!IsValidUtf8(text)) return InvalidArgument("the text is not valid UTF-8");
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = post_processor_.prefix;
  TextLimit limit(text.size());
  for (const TextPart& part : added_.CutRaw(text)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      NIBBLE_RETURN_IF_ERROR(EncodeText(text.substr(part.begin, part.end - part.begin),
                                        part.begin == 0, &limit, &ids));
    }
  }
  if (add_special_tokens) {
    ids.insert(ids.end(), post_processor_.suffix.begin(), post_processor_.suffix.end());
  }
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(std::string_view json,
                                                             std::string_view config) {
  const absl::StatusOr<nlohmann::json> document = ParseJson(json, kJsonLimits);
  if (!document.ok()) return Annotate(document.status(), "tokenizer.json");
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json config_document, ParseTokenizerConfig(config));
  auto tokenizer = std::make_unique<JsonTokenizer>();
  NIBBLE_RETURN_IF_ERROR(tokenizer->Load(JsonNode(&*document, "tokenizer.json: "),
                                         JsonNode(&config_document, "tokenizer_config.json: ")));
  return tokenizer;
}

}  // namespace nibble::engine
