// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The one native path that HTTP and gRPC share: check, render, tokenize, admit, submit.
//
// A front end parses its wire format into the native requests below, calls Generate/Chat, and turns
// the outputs into its wire format. Nothing here knows JSON bodies or protobuf messages.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/status.h"
#include "engine/engine.h"
#include "engine/model/model_config.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/admission/deadline_queue.h"
#include "server/admission/request_error.h"
#include "server/chat/chat_template.h"
#include "server/request_log/request_trace.h"

namespace nibble::server {

struct ServiceLimits {
  int max_choices = 128;  // n
  int max_prompts =
      256;  // prompts of one completion request; choices in all are bounded by max_choices
  int64_t max_prompt_bytes = int64_t{8} << 20;
  int64_t max_detokenized_bytes = int64_t{16} << 20;  // of the tokens, before invalid UTF-8 is told
  // Choices * max_tokens * (1 + most likely tokens told for each) of an answer that is kept until
  // it is whole. An entry is 5 to 120 bytes of it.
  int64_t max_whole_answer_entries = int64_t{1} << 20;
};

struct ServedModel {
  std::string name;  // --served-model-name, or the directory's
  int64_t created_unix_seconds = 0;
  int64_t max_model_len = 0;
  int64_t vocab_size = 0;
};

// Sampling as a client states it: what is unset falls back to generation_config.json, then to the
// server's default.
struct SamplingRequest {
  std::optional<int64_t> max_tokens;
  // Where max_tokens is unset: a front end's own default (OpenAI completions: 16), cut to the rest
  // of the context. Unset too: generation_config.json's, else the rest of the context.
  std::optional<int64_t> default_max_tokens;
  std::optional<int64_t> min_tokens;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;  // -1 and 0: off
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<int64_t> seed;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;
  std::optional<int32_t> logprobs;  // see engine::SamplingParams::logprobs
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::string name;  // optional
};

// The three forms of a prompt: chat messages, texts, or token id lists (several only for HTTP
// completions).
struct ChatPrompt {
  std::vector<ChatMessage> messages;
  bool add_generation_prompt = true;
  nlohmann::ordered_json template_kwargs;  // extra template variables; null or an object
};
struct TextPrompt {
  std::vector<std::string> prompts;
};
struct TokenIdsPrompt {
  std::vector<std::vector<int32_t>> prompts;
};

struct GenerateRequest {
  using Chat = ChatPrompt;
  using Text = TextPrompt;
  using TokenIds = TokenIdsPrompt;

  std::string model;  // "" means the served one
  std::variant<Chat, Text, TokenIds> prompt;
  bool add_special_tokens = true;  // for Text; a chat template brings its own
  int64_t n = 1;                   // choices per prompt
  int32_t priority = 0;
  bool whole_answer = false;  // not streamed: ServiceLimits::max_whole_answer_entries holds
  SamplingRequest sampling;
  // Since when it is here; Parts::request_timeout counts from it.
  std::chrono::steady_clock::time_point arrival = std::chrono::steady_clock::now();
  // When its time is over: it is cancelled and ends with DEADLINE_EXCEEDED. Parts::request_timeout
  // may make it earlier.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  std::shared_ptr<RequestTrace> trace;  // gets what becomes known; may be null
};

// One delta of choice `index` (prompt p, choice c: index = p * n + c).
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  // From the engine thread, or the one that watches deadlines, one at a time; must not block. All
  // choices end with a delta that carries finish_reason, or the request ends with one that carries
  // kError.
  virtual void OnDelta(int index, engine::RequestOutput output) = 0;
};

// A submitted request. Cancel() ends all its choices; idempotent, thread-safe.
class Generation {
 public:
  Generation(engine::Engine* engine, std::vector<engine::RequestId> ids, int64_t num_prompt_tokens);
  void Cancel();
  int num_choices() const { return static_cast<int>(ids_.size()); }
  int64_t num_prompt_tokens() const {
    return num_prompt_tokens_;
  }  // over all prompts, each counted once

 private:
  engine::Engine* engine_;
  std::vector<engine::RequestId> ids_;
  int64_t num_prompt_tokens_;
  std::atomic<bool> cancelled_{false};
};

// Immutable after construction; all methods are thread-safe.
class GenerationService {
 public:
  struct Parts {
    ServedModel model;
    ServiceLimits limits;
    engine::Engine* engine = nullptr;              // not owned
    const engine::Tokenizer* tokenizer = nullptr;  // not owned
    std::unique_ptr<ChatTemplate> chat_template;   // null: chat requests are refused, saying why
    nlohmann::ordered_json
        template_variables;  // bos_token, eos_token, ... of tokenizer_config.json
    engine::GenerationConfig defaults;
    // Called with n for every request that was admitted; may be null.
    std::function<void(int64_t)> on_admitted;
    std::chrono::nanoseconds request_timeout{0};  // of every request; 0: none
    bool trace_texts = false;                     // traces get prompts and outputs too
  };
  explicit GenerationService(Parts parts);
  ~GenerationService();

  // Errors before admission: INVALID_ARGUMENT (field, value, limit), NOT_FOUND (model name),
  // RESOURCE_EXHAUSTED (queue), UNAVAILABLE (draining, failed), DEADLINE_EXCEEDED. After OK the
  // sink gets everything; it may get deltas before Generate returns. An engine whose step takes too
  // long still takes requests: the step may end, and a balancer that asks for the server's health
  // sends none.
  absl::StatusOr<std::shared_ptr<Generation>> Generate(GenerateRequest request,
                                                       std::shared_ptr<GenerationSink> sink);

  absl::StatusOr<std::string> RenderChat(const GenerateRequest::Chat& chat) const;
  absl::StatusOr<std::vector<int32_t>> Tokenize(std::string_view text,
                                                bool add_special_tokens) const;
  // `text` of chat messages, tokenized without adding special tokens.
  absl::StatusOr<std::vector<int32_t>> TokenizeChat(const GenerateRequest::Chat& chat) const;
  absl::StatusOr<std::string> Detokenize(const std::vector<int32_t>& ids) const;

  absl::Status CheckModelName(std::string_view name) const;  // NOT_FOUND naming what is served
  const ServedModel& model() const { return parts_.model; }
  const ServiceLimits& limits() const { return parts_.limits; }
  const engine::Tokenizer& tokenizer() const { return *parts_.tokenizer; }
  engine::Engine& engine() { return *parts_.engine; }

 private:
  absl::Status CheckEngine() const;  // that it has not failed for good
  // Refuses a text that cannot be max_model_len tokens, before it is tokenized.
  absl::Status CheckTextFits(std::string_view text, std::string_view param) const;
  absl::StatusOr<std::vector<std::vector<int32_t>>> PromptTokens(GenerateRequest* request) const;
  // Of the prompt as it is tokenized, for the log.
  std::string PromptText(const std::vector<std::vector<int32_t>>& prompts) const;
  // `max_tokens_kept`: what max_whole_answer_entries leaves for each choice.
  absl::StatusOr<engine::SamplingParams> ResolveSampling(const SamplingRequest& request,
                                                         int64_t num_prompt_tokens,
                                                         int64_t max_tokens_kept) const;

  Parts parts_;
  const std::shared_ptr<DeadlineQueue> deadlines_ = std::make_shared<DeadlineQueue>();
  std::vector<uint32_t> token_bytes_;  // [vocab_size], bytes of text of each token at most
  int64_t longest_token_bytes_ = 0;
};

}  // namespace nibble::server
