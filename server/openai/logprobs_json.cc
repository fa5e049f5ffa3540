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

void AppendChatLogprobs(const std::vector<engine::TokenLogprobs>& tokens,
                        const engine::Tokenizer& tokenizer, std::string* out) {
  out->append("{\"content\":[");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) out->push_back(',');
    AppendChatToken(tokens[i].sampled, tokenizer, out);
    out->append(",\"top_logprobs\":[");
    for (size_t k = 0; k < tokens[i].top.size(); ++k) {
      if (k > 0) out->push_back(',');
      AppendChatToken(tokens[i].top[k], tokenizer, out);
      out->push_back('}');
    }
    out->append("]}");
  }
  out->append("],\"refusal\":null}");
}

void AppendCompletionLogprobs(const std::vector<engine::TokenLogprobs>& tokens,
                              const engine::Tokenizer& tokenizer, int64_t* text_offset,
                              std::string* out) {
  std::string names;
  std::string logprobs;
  std::string top;
  std::string offsets;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) {
      for (std::string* part : {&names, &logprobs, &top, &offsets}) part->push_back(',');
    }
    const std::string text = TokenText(tokens[i].sampled.token_id, tokenizer);
    AppendJsonString(text, &names);
    AppendLogprob(tokens[i].sampled.logprob, &logprobs);
    AppendTopAsObject(tokens[i], tokenizer, &top);
    offsets.append(std::to_string(*text_offset));
    *text_offset += CountCharacters(text);
  }
  fmt::format_to(
      std::back_inserter(*out),
      "{{\"tokens\":[{}],\"token_logprobs\":[{}],\"top_logprobs\":[{}],\"text_offset\":[{}]}}",
      names, logprobs, top, offsets);
}

}  // namespace nibble::server
