// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// JSON written by hand, because a stream chunk is written for every token of every stream: about a
// tenth of what building a JSON tree and printing it costs. Used for whole answers too, so that
// both print alike.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request/request.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble::server {

// `text` quoted and escaped. Invalid UTF-8 becomes U+FFFD, so the result is always valid JSON.
void AppendJsonString(std::string_view text, std::string* out);
// The same without the quotes: parts may be appended one by one, if none ends inside a character.
void AppendJsonEscaped(std::string_view text, std::string* out);
// Shortest text that reads back as the same float; JSON knows no infinity, so below -9999 (and NaN)
// is -9999, as vLLM writes it.
void AppendLogprob(float value, std::string* out);

// What all chunks and answers of one request share.
struct AnswerHeader {
  std::string id;           // "chatcmpl-..." or "cmpl-..."
  std::string_view object;  // "chat.completion.chunk", ...
  int64_t created_unix_seconds = 0;
  std::string model;
  std::string system_fingerprint;  // "": null
};
// {"id":...,"object":...,"created":...,"model":...,"system_fingerprint":... and no closing brace.
std::string FormatAnswerHeader(const AnswerHeader& header);

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
};
// "usage":{...}
void AppendUsage(const Usage& usage, std::string* out);

// "finish_reason":...,"stop_reason":...  (finish_reason null while `output` is not the last delta)
void AppendFinish(const engine::RequestOutput& output, std::string* out);

// The log probabilities of a chat choice: {"content":[...],"refusal":null}.
void AppendChatLogprobs(const std::vector<engine::TokenLogprobs>& tokens,
                        const engine::Tokenizer& tokenizer, std::string* out);
// Of a completion choice: {"tokens":[...],"token_logprobs":[...],"top_logprobs":[...],
// "text_offset":[...]}. `text_offset` is where the first token starts in the whole answer, in
// characters; it is moved past the last.
void AppendCompletionLogprobs(const std::vector<engine::TokenLogprobs>& tokens,
                              const engine::Tokenizer& tokenizer, int64_t* text_offset,
                              std::string* out);

// Either of these two, grown as the tokens come.
class LogprobsText {
 public:
  explicit LogprobsText(bool chat, int64_t text_offset = 0)
      : chat_(chat), text_offset_(text_offset) {}
  void Append(const std::vector<engine::TokenLogprobs>& tokens, const engine::Tokenizer& tokenizer);
  void Finish(std::string* out) const;
  int64_t text_offset() const { return text_offset_; }

 private:
  void AppendChat(const engine::TokenLogprobs& token, const engine::Tokenizer& tokenizer);
  void AppendCompletion(const engine::TokenLogprobs& token, const engine::Tokenizer& tokenizer);

  bool chat_;
  int64_t text_offset_;
  // Elements of the lists, joined by commas; a chat has the first only.
  std::string tokens_;
  std::string logprobs_;
  std::string top_;
  std::string offsets_;
};

// "data: <json>\n\n"
std::string SseEvent(std::string_view json);
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

}  // namespace nibble::server
