// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "base/utf8.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::engine {

IncrementalDecoder::IncrementalDecoder(const Tokenizer* tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

IncrementalDecoder::IncrementalDecoder(const Tokenizer* tokenizer, bool skip_special_tokens,
                                       std::span<const int32_t> prompt_token_ids)
    : IncrementalDecoder(tokenizer, skip_special_tokens) {
  const auto skipped = [this](int32_t id) {
    return skip_special_tokens_ && tokenizer_->IsSpecial(id);
  };
  std::string bytes;
  for (const int32_t id : prompt_token_ids) {
    if (start_.passed) break;
    if (!skipped(id)) tokenizer_->AppendTokenText(id, &start_, &bytes);
  }
  // A prompt may end within a character, which the first new tokens then complete. Its last four
  // bytes tell, so that a long prompt costs no more than a short one.
  std::string tail;
  for (size_t index = prompt_token_ids.size(); index > 0 && tail.size() < 4; --index) {
    const int32_t id = prompt_token_ids[index - 1];
    if (!skipped(id)) tail.insert(0, tokenizer_->TokenBytes(id));
  }
  pending_ = tail.substr(CompleteUtf8Prefix(tail));
  pending_is_prompt_ = !pending_.empty();
}

std::string IncrementalDecoder::Append(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return "";
  const size_t before = pending_.size();
  tokenizer_->AppendTokenText(id, &start_, &pending_);
  if (pending_.size() == before) return "";
  pending_is_prompt_ = false;
  const size_t complete = CompleteUtf8Prefix(pending_);
  std::string text = ReplaceInvalidUtf8(std::string_view(pending_).substr(0, complete));
  pending_.erase(0, complete);
  return text;
}

std::string IncrementalDecoder::Flush() {
  std::string text = pending_is_prompt_ ? "" : ReplaceInvalidUtf8(pending_);
  pending_.clear();
  pending_is_prompt_ = false;
  return text;
}

}  // namespace nibble::engine
