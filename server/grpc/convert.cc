// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/convert.h"

#include <string>
#include <utility>

#include "base/utf8.h"
#include "server/status_map.h"

namespace nibble::server {
namespace {

SamplingRequest ToNative(const v1::SamplingParams& message) {
  SamplingRequest native;
  if (message.has_max_tokens()) native.max_tokens = message.max_tokens();
  if (message.has_min_tokens()) native.min_tokens = message.min_tokens();
  if (message.has_temperature()) native.temperature = message.temperature();
  if (message.has_top_p()) native.top_p = message.top_p();
  if (message.has_top_k()) native.top_k = message.top_k();
  if (message.has_min_p()) native.min_p = message.min_p();
  if (message.has_repetition_penalty()) native.repetition_penalty = message.repetition_penalty();
  if (message.has_presence_penalty()) native.presence_penalty = message.presence_penalty();
  if (message.has_frequency_penalty()) native.frequency_penalty = message.frequency_penalty();
  for (const auto& [id, bias] : message.logit_bias()) native.logit_bias.emplace_back(id, bias);
  if (message.has_seed()) native.seed = message.seed();
  native.stop.assign(message.stop().begin(), message.stop().end());
  native.stop_token_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
  native.ignore_eos = message.ignore_eos();
  native.include_stop_str_in_output = message.include_stop_str_in_output();
  if (message.has_skip_special_tokens()) native.skip_special_tokens = message.skip_special_tokens();
  if (message.has_logprobs()) native.logprobs = message.logprobs();
  return native;
}

void Fill(const engine::TokenLogprob& logprob, const engine::Tokenizer& tokenizer,
          v1::TokenLogprob* message) {
  message->set_token_id(logprob.token_id);
  message->set_logprob(logprob.logprob);
  message->set_rank(logprob.rank);
  message->set_token_bytes(tokenizer.TokenBytes(logprob.token_id));
}

v1::FinishReason ToMessage(engine::FinishReason reason) {
  return reason == engine::FinishReason::kLength ? v1::FINISH_REASON_LENGTH
                                                 : v1::FINISH_REASON_STOP;
}

}  // namespace

absl::StatusOr<GenerateRequest> ToNative(const v1::GenerateRequest& message) {
  GenerateRequest native;
  native.model = message.model();
  switch (message.prompt_case()) {
    case v1::GenerateRequest::kText:
      native.prompt = GenerateRequest::Text{{message.text()}};
      break;
    case v1::GenerateRequest::kTokenIds: {
      const auto& ids = message.token_ids().ids();
      native.prompt = GenerateRequest::TokenIds{{std::vector<int32_t>(ids.begin(), ids.end())}};
      break;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return InvalidArgument("prompt: one of text and token_ids is required");
  }
  native.n = message.n() == 0 ? 1 : message.n();
  native.priority = message.priority();
  native.add_special_tokens = !message.has_add_special_tokens() || message.add_special_tokens();
  native.sampling = ToNative(message.sampling());
  return native;
}

absl::StatusOr<GenerateRequest> ToNative(const v1::ChatRequest& message) {
  GenerateRequest native;
  native.model = message.model();
  GenerateRequest::Chat chat;
  for (const v1::ChatMessage& turn : message.messages()) {
    chat.messages.push_back({turn.role(), turn.content(), turn.name()});
  }
  chat.add_generation_prompt =
      !message.has_add_generation_prompt() || message.add_generation_prompt();
  native.prompt = std::move(chat);
  native.n = message.n() == 0 ? 1 : message.n();
  native.priority = message.priority();
  native.sampling = ToNative(message.sampling());
  return native;
}

void AppendDelta(engine::RequestOutput output, const engine::Tokenizer& tokenizer,
                 v1::GenerateResponse* message) {
  message->mutable_text()->append(output.text);
  for (const int32_t id : output.token_ids) message->add_token_ids(id);
  for (const engine::TokenLogprobs& logprobs : output.logprobs) {
    v1::TokenLogprobs* entry = message->add_logprobs();
    Fill(logprobs.sampled, tokenizer, entry->mutable_sampled());
    for (const engine::TokenLogprob& top : logprobs.top) Fill(top, tokenizer, entry->add_top());
  }
  if (!output.finish_reason.has_value()) return;
  message->set_finish_reason(ToMessage(*output.finish_reason));
  if (auto* text = std::get_if<std::string>(&output.stop_reason))
    message->set_stop_string(std::move(*text));
  if (const auto* id = std::get_if<int32_t>(&output.stop_reason)) message->set_stop_token_id(*id);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // Clients take 8 KB of headers by default, and a byte outside ASCII is sent as three.
  constexpr size_t kMaxMessageBytes = 2048;
  const std::string_view whole(status.message().data(), status.message().size());
  std::string message(whole.substr(0, CompleteUtf8Prefix(whole.substr(0, kMaxMessageBytes))));
  if (message.size() < whole.size()) message += "...";
  return grpc::Status(static_cast<grpc::StatusCode>(MapStatus(status.code()).grpc_code),
                      std::move(message));
}

void AddRetryHint(const absl::Status& status, grpc::CallbackServerContext* context) {
  const int seconds = MapStatus(status.code()).retry_after_seconds;
  if (seconds > 0) context->AddTrailingMetadata("retry-after-ms", std::to_string(seconds * 1000));
}

}  // namespace nibble::server
