// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/tokenizer.h"

#include "base/mapped_file.h"
#include "engine/tokenizer/sentencepiece_tokenizer.h"
#include "engine/tokenizer/tokenizer_json.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxFileBytes = size_t{128} << 20;

// The file's contents; "" when there is no such file.
absl::StatusOr<std::string> ReadIfPresent(const std::string& path) {
  absl::StatusOr<std::string> contents = ReadFile(path, kMaxFileBytes);
  if (absl::IsNotFound(contents.status())) return std::string();
  return contents;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string config,
                          ReadIfPresent(model_dir + "/tokenizer_config.json"));
  absl::StatusOr<std::string> json = ReadFile(model_dir + "/tokenizer.json", kMaxFileBytes);
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer;
  if (json.ok()) {
    tokenizer = LoadTokenizerJson(*json, config);
  } else if (!absl::IsNotFound(json.status())) {
    return json.status();
  } else {
    const absl::StatusOr<std::string> model =
        ReadFile(model_dir + "/tokenizer.model", kMaxFileBytes);
    if (absl::IsNotFound(model.status())) {
      return NotFound("{}: neither tokenizer.json nor tokenizer.model is there", model_dir);
    }
    if (!model.ok()) return model.status();
    tokenizer = LoadSentencePiece(*model, config);
  }
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), model_dir);
  return tokenizer;
}

}  // namespace nibble::engine
