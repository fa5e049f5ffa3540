// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The two forms in which OpenAI tells log probabilities.

#include <algorithm>
#include <cmath>
#include <iterator>

#include "fmt/format.h"

#include "base/utf8.h"
#include "server/openai/sse_writer.h"

namespace nibble::server {
namespace {

// What the token stands for. Special tokens stand for no text, so their name is told.
std::string TokenText(int32_t id, const engine::Tokenizer& tokenizer) {
  std::string bytes = tokenizer.TokenBytes(id);
  return bytes.empty() ? tokenizer.IdToToken(id) : bytes;
}

// {"token":...,"logprob":...,"bytes":[...]   without the closing brace. A token may be a part of a
// character; then "token" holds U+FFFD and only "bytes" tells it exactly.
void AppendChatToken(const engine::TokenLogprob& token, const engine::Tokenizer& tokenizer,
                     std::string* out) {
  const std::string text = TokenText(token.token_id, tokenizer);
  out->append("{\"token\":");
  AppendJsonString(text, out);
  out->append(",\"logprob\":");
  AppendLogprob(token.logprob, out);
  out->append(",\"bytes\":[");
  for (size_t i = 0; i < text.size(); ++i) {
    if (i > 0) out->push_back(',');
    out->append(std::to_string(static_cast<unsigned char>(text[i])));
  }
  out->push_back(']');
}

// {"<token>":logprob,...}: the sampled token and the most likely ones. Two tokens that print alike
// (parts of characters do) appear once, the more likely one.
void AppendTopAsObject(const engine::TokenLogprobs& logprobs, const engine::Tokenizer& tokenizer,
                       std::string* out) {
  std::vector<std::string> seen;
  const auto append = [&](const engine::TokenLogprob& token) {
    std::string text;
    AppendJsonString(TokenText(token.token_id, tokenizer), &text);
    if (std::find(seen.begin(), seen.end(), text) != seen.end()) return;
    if (!seen.empty()) out->push_back(',');
    out->append(text).push_back(':');
    AppendLogprob(token.logprob, out);
    seen.push_back(std::move(text));
  };
  out->push_back('{');
  for (const engine::TokenLogprob& token : logprobs.top) append(token);
  append(logprobs.sampled);
  out->push_back('}');
}

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

}  // namespace

void AppendLogprob(float value, std::string* out) {
  constexpr float kLowest = -9999.0F;
  if (std::isnan(value) || value < kLowest) value = kLowest;
  const size_t start = out->size();
  fmt::format_to(std::back_inserter(*out), "{}", std::min(value, 0.0F));
  // -1 would be read as an integer by clients in typed languages.
  if (out->find_first_of(".e", start) == std::string::npos) out->append(".0");
}

void LogprobsText::Append(const std::vector<engine::TokenLogprobs>& tokens,
                          const engine::Tokenizer& tokenizer) {
  for (const engine::TokenLogprobs& token : tokens) {
    chat_ ? AppendChat(token, tokenizer) : AppendCompletion(token, tokenizer);
  }
}

void LogprobsText::AppendChat(const engine::TokenLogprobs& token,
                              const engine::Tokenizer& tokenizer) {
  if (!tokens_.empty()) tokens_.push_back(',');
  AppendChatToken(token.sampled, tokenizer, &tokens_);
  tokens_.append(",\"top_logprobs\":[");
  for (size_t k = 0; k < token.top.size(); ++k) {
    if (k > 0) tokens_.push_back(',');
    AppendChatToken(token.top[k], tokenizer, &tokens_);
    tokens_.push_back('}');
  }
  tokens_.append("]}");
}

void LogprobsText::AppendCompletion(const engine::TokenLogprobs& token,
                                    const engine::Tokenizer& tokenizer) {
  if (!tokens_.empty()) {
    for (std::string* part : {&tokens_, &logprobs_, &top_, &offsets_}) part->push_back(',');
  }
  const std::string text = TokenText(token.sampled.token_id, tokenizer);
  AppendJsonString(text, &tokens_);
  AppendLogprob(token.sampled.logprob, &logprobs_);
  AppendTopAsObject(token, tokenizer, &top_);
  offsets_.append(std::to_string(text_offset_));
  text_offset_ += CountCharacters(text);
}

void LogprobsText::Finish(std::string* out) const {
  if (chat_) {
    out->append("{\"content\":[").append(tokens_).append("],\"refusal\":null}");
    return;
  }
  out->append("{\"tokens\":[").append(tokens_);
  out->append("],\"token_logprobs\":[").append(logprobs_);
  out->append("],\"top_logprobs\":[").append(top_);
  out->append("],\"text_offset\":[").append(offsets_).append("]}");
}

void AppendChatLogprobs(const std::vector<engine::TokenLogprobs>& tokens,
                        const engine::Tokenizer& tokenizer, std::string* out) {
  LogprobsText text(/*chat=*/true);
  text.Append(tokens, tokenizer);
  text.Finish(out);
}

void AppendCompletionLogprobs(const std::vector<engine::TokenLogprobs>& tokens,
                              const engine::Tokenizer& tokenizer, int64_t* text_offset,
                              std::string* out) {
  LogprobsText text(/*chat=*/false, *text_offset);
  text.Append(tokens, tokenizer);
  text.Finish(out);
  *text_offset = text.text_offset();
}

}  // namespace nibble::server
