// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/api_request.h"

#include <charconv>
#include <utility>

#include "server/openai/api_error.h"
#include "server/openai/field_reader.h"

namespace nibble::server {
namespace {

using nlohmann::json;

// OpenAI's default length of a text completion; a chat may fill the context.
constexpr int64_t kCompletionMaxTokens = 16;
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// --- Messages ------------------------------------------------------------------------------------

// A string, or a list of {"type":"text","text":...} whose texts are joined by newlines (as vLLM
// does for templates that want a string).
absl::StatusOr<std::string> ParseContent(const json& content, const std::string& name) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) {
    return WithParam(InvalidArgument("{}: want a string or a list of text parts, got {}", name,
                                     DescribeType(content)),
                     name);
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const std::string part_name = fmt::format("{}[{}]", name, i);
    FieldReader reader(content[i], part_name + ".");
    const auto type = reader.String("type");
    if (reader.ok() && type != "text") {
      return WithParam(
          InvalidArgument("{}.type is \"{}\", the only supported content part is \"text\"",
                          part_name, type.value_or("")),
          part_name + ".type");
    }
    const auto part = reader.String("text");
    NIBBLE_RETURN_IF_ERROR(reader.Finish());
    if (!part.has_value()) {
      return WithParam(InvalidArgument("{}.text is missing", part_name), part_name + ".text");
    }
    if (i > 0) text.push_back('\n');
    text.append(*part);
  }
  return text;
}

absl::StatusOr<ChatMessage> ParseMessage(const json& value, const std::string& name) {
  FieldReader reader(value, name + ".", FieldReader::Unknown::kMayBeEmpty);
  ChatMessage message;
  const auto role = reader.String("role");
  const json* content = reader.Get("content");
  message.name = reader.String("name").value_or("");
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  constexpr size_t kMaxRoleBytes = 64;
  if (!role.has_value()) {
    return WithParam(InvalidArgument("{}.role is missing", name), name + ".role");
  }
  if (role->empty() || role->size() > kMaxRoleBytes) {
    return WithParam(
        InvalidArgument("{}.role has {} bytes, want 1..{}", name, role->size(), kMaxRoleBytes),
        name + ".role");
  }
  if (*role == "tool" || *role == "function") {
    return WithParam(InvalidArgument("{}.role: this server does not support \"{}\"", name, *role),
                     name + ".role");
  }
  if (content == nullptr) {
    return WithParam(InvalidArgument("{}.content is missing", name), name + ".content");
  }
  NIBBLE_ASSIGN_OR_RETURN(message.content, ParseContent(*content, name + ".content"));
  message.role = *role;
  return message;
}

// Reads messages, add_generation_prompt and chat_template_kwargs.
GenerateRequest::Chat ParseChat(FieldReader* reader) {
  GenerateRequest::Chat chat;
  chat.add_generation_prompt = reader->Bool("add_generation_prompt").value_or(true);
  if (const json* kwargs = reader->Get("chat_template_kwargs")) {
    if (kwargs->is_object()) {
      chat.template_kwargs = nlohmann::ordered_json(*kwargs);
    } else {
      reader->Fail("chat_template_kwargs",
                   InvalidArgument("want an object, got {}", DescribeType(*kwargs)));
    }
  }
  const json* messages = reader->Get("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    const std::string_view got = messages == nullptr    ? "nothing"
                                 : messages->is_array() ? "an empty list"
                                                        : DescribeType(*messages);
    reader->Fail("messages", InvalidArgument("want a list of at least one message, got {}", got));
    return chat;
  }
  chat.messages.reserve(messages->size());
  for (size_t i = 0; i < messages->size(); ++i) {
    auto message = ParseMessage((*messages)[i], fmt::format("messages[{}]", i));
    if (!message.ok()) {
      reader->FailAsIs(message.status());
      return chat;
    }
    chat.messages.push_back(std::move(message).value());
  }
  return chat;
}

// --- Sampling ------------------------------------------------------------------------------------

void ParseStop(const engine::SamplingLimits& limits, FieldReader* reader,
               std::vector<std::string>* stop) {
  const json* value = reader->Get("stop");
  if (value == nullptr) return;
  const auto add = [&](const json& text) {
    if (!text.is_string()) {
      reader->Fail("stop", InvalidArgument("want a string or a list of strings, got {}",
                                           DescribeType(text)));
    } else if (const auto& string = text.get_ref<const std::string&>();
               string.empty() || string.size() > static_cast<size_t>(limits.max_stop_bytes)) {
      reader->Fail("stop", InvalidArgument("a stop string has {} bytes, want 1..{}", string.size(),
                                           limits.max_stop_bytes));
    } else {
      stop->push_back(string);
    }
  };
  if (!value->is_array()) return add(*value);
  if (value->size() > static_cast<size_t>(limits.max_stop_strings)) {
    reader->Fail("stop", InvalidArgument("{} stop strings, the limit is {}", value->size(),
                                         limits.max_stop_strings));
    return;
  }
  for (const json& text : *value) add(text);
}

void ParseLogitBias(const engine::SamplingLimits& limits, FieldReader* reader,
                    std::vector<std::pair<int32_t, float>>* bias) {
  const json* value = reader->Get("logit_bias");
  if (value == nullptr) return;
  if (!value->is_object()) {
    reader->Fail("logit_bias", InvalidArgument("want an object of token ids to numbers, got {}",
                                               DescribeType(*value)));
    return;
  }
  if (value->size() > static_cast<size_t>(limits.max_logit_bias)) {
    reader->Fail("logit_bias", InvalidArgument("{} entries, the limit is {}", value->size(),
                                               limits.max_logit_bias));
    return;
  }
  for (const auto& [key, entry] : value->items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    // The shortest spelling only: "7" and "007" would be one token twice.
    if (error != std::errc() || end != key.data() + key.size() || std::to_string(id) != key ||
        id < 0 || id >= limits.vocab_size) {
      reader->Fail("logit_bias", InvalidArgument("the key \"{}\" is not a token id in 0..{}",
                                                 Shown(key), limits.vocab_size - 1));
      return;
    }
    const double number = entry.is_number() ? entry.get<double>() : 1e9;
    if (!(number >= -100.0 && number <= 100.0)) {
      reader->Fail("logit_bias",
                   InvalidArgument("the bias of token {} is {}, want a number in -100..100", id,
                                   entry.is_number() ? entry.dump() : DescribeType(entry)));
      return;
    }
    bias->emplace_back(id, static_cast<float>(number));
  }
}

// max_completion_tokens is the newer name of max_tokens; both at once must agree.
std::optional<int64_t> ParseMaxTokens(FieldReader* reader, bool chat) {
  const auto older = reader->Integer("max_tokens", 1, kMaxInt64);
  if (!chat) return older;
  const auto newer = reader->Integer("max_completion_tokens", 1, kMaxInt64);
  if (older.has_value() && newer.has_value() && *older != *newer) {
    reader->Fail("max_completion_tokens",
                 InvalidArgument("is {}, but max_tokens is {}", *newer, *older));
  }
  return newer.has_value() ? newer : older;
}

// Ranges are those of engine::SamplingParams, which checks them once more; here the error can name
// the client's field.
void ParseSampling(const engine::SamplingLimits& limits, bool chat, FieldReader* reader,
                   SamplingRequest* sampling) {
  const auto integer32 = [&](const char* name, int64_t low) -> std::optional<int32_t> {
    const auto value = reader->Integer(name, low, kMaxInt32);
    if (!value.has_value()) return std::nullopt;
    return static_cast<int32_t>(*value);
  };
  sampling->max_tokens = ParseMaxTokens(reader, chat);
  sampling->min_tokens = reader->Integer("min_tokens", 0, kMaxInt64);
  sampling->temperature = reader->Number("temperature", {0.0, 2.0});
  sampling->top_p = reader->Number("top_p", {0.0, 1.0, true});
  sampling->top_k = integer32("top_k", -1);
  sampling->min_p = reader->Number("min_p", {0.0, 1.0});
  sampling->repetition_penalty = reader->Number("repetition_penalty", {0.0, 2.0, true});
  sampling->presence_penalty = reader->Number("presence_penalty", {-2.0, 2.0});
  sampling->frequency_penalty = reader->Number("frequency_penalty", {-2.0, 2.0});
  sampling->seed = reader->Integer("seed");
  sampling->ignore_eos = reader->Bool("ignore_eos").value_or(false);
  sampling->include_stop_str_in_output = reader->Bool("include_stop_str_in_output").value_or(false);
  sampling->skip_special_tokens = reader->Bool("skip_special_tokens").value_or(true);
  ParseStop(limits, reader, &sampling->stop);
  ParseLogitBias(limits, reader, &sampling->logit_bias);
  sampling->stop_token_ids =
      reader
          ->TokenIds("stop_token_ids", static_cast<size_t>(limits.max_stop_token_ids),
                     limits.vocab_size)
          .value_or(std::vector<int32_t>());
}

void ParseStreaming(FieldReader* reader, ApiRequest* request) {
  request->stream = reader->Bool("stream").value_or(false);
  const json* options = reader->Get("stream_options");
  if (options == nullptr) return;
  if (!request->stream) {
    reader->Fail("stream_options", InvalidArgument("only allowed when stream is true"));
    return;
  }
  FieldReader fields(*options, "stream_options.");
  request->include_usage = fields.Bool("include_usage").value_or(false);
  reader->FailAsIs(fields.Finish());
}

// Fields that chat and completions share.
void ParseCommon(const RequestLimits& limits, FieldReader* reader, ApiRequest* request) {
  GenerateRequest& generate = request->generate;
  generate.model = reader->String("model").value_or("");
  // The service tells the limit of n, which depends on the number of prompts.
  generate.n = reader->Integer("n").value_or(1);
  generate.priority = static_cast<int32_t>(
      reader->Integer("priority", std::numeric_limits<int32_t>::min(), kMaxInt32).value_or(0));
  ParseSampling(limits.sampling, request->chat, reader, &generate.sampling);
  ParseStreaming(reader, request);
}

// --- Prompts -------------------------------------------------------------------------------------

absl::StatusOr<GenerateRequest::TokenIds> ParseTokenPrompts(const json& prompt,
                                                            const RequestLimits& limits) {
  GenerateRequest::TokenIds result;
  const auto max_tokens = static_cast<size_t>(limits.sampling.max_model_len);
  if (!prompt[0].is_array()) {
    NIBBLE_ASSIGN_OR_RETURN(auto ids, ReadTokenIds(prompt, max_tokens, limits.sampling.vocab_size));
    result.prompts.push_back(std::move(ids));
    return result;
  }
  for (const json& ids_json : prompt) {
    NIBBLE_ASSIGN_OR_RETURN(auto ids,
                            ReadTokenIds(ids_json, max_tokens, limits.sampling.vocab_size));
    result.prompts.push_back(std::move(ids));
  }
  return result;
}

// A string, strings, token ids, or lists of token ids.
void ParsePrompt(const RequestLimits& limits, FieldReader* reader, GenerateRequest* generate) {
  const json* prompt = reader->Get("prompt");
  if (prompt == nullptr) return reader->Fail("prompt", InvalidArgument("is missing"));
  GenerateRequest::Text texts;
  if (prompt->is_string()) {
    texts.prompts.push_back(prompt->get<std::string>());
    generate->prompt = std::move(texts);
    return;
  }
  if (!prompt->is_array() || prompt->empty()) {
    return reader->Fail(
        "prompt", InvalidArgument("want a string or a list that is not empty, got {}",
                                  prompt->is_array() ? "an empty list" : DescribeType(*prompt)));
  }
  const json& first = (*prompt)[0];
  const bool many = first.is_string() || first.is_array();
  if (many && prompt->size() > static_cast<size_t>(limits.service.max_prompts)) {
    return reader->Fail("prompt", InvalidArgument("{} prompts, the limit is {}", prompt->size(),
                                                  limits.service.max_prompts));
  }
  if (!first.is_string()) {
    auto tokens = ParseTokenPrompts(*prompt, limits);
    if (!tokens.ok()) return reader->Fail("prompt", tokens.status());
    generate->prompt = std::move(tokens).value();
    return;
  }
  for (const json& text : *prompt) {
    if (!text.is_string()) {
      return reader->Fail("prompt",
                          InvalidArgument("a list holds both a string and {}", DescribeType(text)));
    }
    texts.prompts.push_back(text.get<std::string>());
  }
  generate->prompt = std::move(texts);
}

}  // namespace

absl::StatusOr<ApiRequest> ParseChatRequest(const json& body, const RequestLimits& limits) {
  FieldReader reader(body);
  ApiRequest request;
  request.chat = true;
  request.generate.prompt = ParseChat(&reader);
  // vLLM's default: a template writes the beginning of the text itself.
  request.generate.add_special_tokens = reader.Bool("add_special_tokens").value_or(false);
  ParseCommon(limits, &reader, &request);
  request.logprobs = reader.Bool("logprobs").value_or(false);
  const auto top = reader.Integer("top_logprobs", 0, limits.sampling.max_logprobs);
  if (top.has_value() && !request.logprobs) {
    reader.Fail("top_logprobs", InvalidArgument("only allowed when logprobs is true"));
  }
  if (request.logprobs) {
    request.generate.sampling.logprobs = static_cast<int32_t>(top.value_or(0));
  }
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return request;
}

absl::StatusOr<ApiRequest> ParseCompletionRequest(const json& body, const RequestLimits& limits) {
  FieldReader reader(body);
  ApiRequest request;
  ParsePrompt(limits, &reader, &request.generate);
  request.generate.add_special_tokens = reader.Bool("add_special_tokens").value_or(true);
  ParseCommon(limits, &reader, &request);
  request.generate.sampling.default_max_tokens = kCompletionMaxTokens;
  const auto logprobs = reader.Integer("logprobs", 0, limits.sampling.max_logprobs);
  if (logprobs.has_value()) {
    request.logprobs = true;
    request.generate.sampling.logprobs = static_cast<int32_t>(*logprobs);
  }
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return request;
}

absl::StatusOr<TokenizeRequest> ParseTokenizeRequest(const json& body,
                                                     const RequestLimits& /*limits*/) {
  FieldReader reader(body);
  TokenizeRequest request;
  request.model = reader.String("model").value_or("");
  request.return_token_strs = reader.Bool("return_token_strs").value_or(false);
  request.prompt = reader.String("prompt");
  const bool chat = reader.Get("messages") != nullptr;
  if (reader.ok() && chat == request.prompt.has_value()) {
    reader.Fail("prompt", InvalidArgument("want either prompt or messages"));
  }
  if (chat) request.chat = ParseChat(&reader);
  request.add_special_tokens = reader.Bool("add_special_tokens").value_or(!chat);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return request;
}

absl::StatusOr<DetokenizeRequest> ParseDetokenizeRequest(const json& body,
                                                         const RequestLimits& limits) {
  // More ids than any context holds, and still bounded by the body's size.
  constexpr size_t kMaxTokens = size_t{1} << 22;
  FieldReader reader(body);
  DetokenizeRequest request;
  request.model = reader.String("model").value_or("");
  auto tokens = reader.TokenIds("tokens", kMaxTokens, limits.sampling.vocab_size);
  if (reader.ok() && !tokens.has_value()) reader.Fail("tokens", InvalidArgument("is missing"));
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  request.tokens = std::move(*tokens);
  return request;
}

}  // namespace nibble::server
