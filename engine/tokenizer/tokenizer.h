// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Text to token ids and back. Immutable after loading; all methods are thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

// How far the beginning of a text has been decoded, for the rules about its leading space.
// Value-initialized at the start of a text; only Tokenizer::AppendTokenText() changes it.
struct TextStart {
  bool passed = false;  // from here on tokens read as in the middle of a text
  int32_t num_stripped = 0;
};

class Tokenizer {
 public:
  // Reads tokenizer.json, else tokenizer.model (SentencePiece), from a Hugging Face model
  // directory. Errors name the file and the unsupported or broken element.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);

  virtual ~Tokenizer() = default;

  // Special tokens written in `text` ("<|user|>") become their ids. `add_special_tokens` adds what
  // the post-processor adds (usually the beginning-of-sequence token). INVALID_ARGUMENT for text
  // that is not valid UTF-8.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      bool add_special_tokens) const = 0;

  // The whole text of `ids`; invalid UTF-8 becomes U+FFFD. INVALID_ARGUMENT for an id out of the
  // vocabulary.
  virtual absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                             bool skip_special_tokens) const = 0;

  // Raw bytes that `id` contributes in the middle of a text (for logprobs "bytes" and incremental
  // decoding). A byte-level token may be part of a character. Ids without a token give "".
  virtual std::string TokenBytes(int32_t id) const = 0;

  // Appends the raw bytes of `id` as the next token of a text that has come to `*start`, and moves
  // `*start` on. Tokenizers without a rule about the beginning of a text need not override it.
  virtual void AppendTokenText(int32_t id, TextStart* start, std::string* bytes) const {
    start->passed = true;
    bytes->append(TokenBytes(id));
  }

  virtual bool IsSpecial(int32_t id) const = 0;
  virtual std::optional<int32_t> TokenToId(std::string_view token) const = 0;
  // The token as the vocabulary file spells it ("Ġthe"); "" for an id without one.
  virtual std::string IdToToken(int32_t id) const = 0;
  // Ids are below this; may be smaller than the model's (padded) vocabulary.
  virtual int64_t vocab_size() const = 0;
};

// Decodes one sequence token by token. Append() returns the text that became certain: complete
// UTF-8 characters only, and the same text in all as Tokenizer::Decode of the whole
// (SentencePiece's leading-space rule included). Not thread-safe; one per sequence; the tokenizer
// must outlive it.
class IncrementalDecoder {
 public:
  IncrementalDecoder(const Tokenizer* tokenizer, bool skip_special_tokens);
  // `prompt_token_ids` give the context that a first token's spelling depends on; they produce no
  // text.
  IncrementalDecoder(const Tokenizer* tokenizer, bool skip_special_tokens,
                     std::span<const int32_t> prompt_token_ids);

  std::string Append(int32_t id);
  // What is held back; incomplete bytes become U+FFFD.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  TextStart start_;
  std::string pending_;             // bytes of an unfinished character
  bool pending_is_prompt_ = false;  // all of them are the prompt's: not to be flushed
};

}  // namespace nibble::engine
