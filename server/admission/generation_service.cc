// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/admission/generation_service.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <limits>
#include <utility>

#include "base/utf8.h"
#include "server/admission/sampling_json.h"
#include "server/admission/watched_sink.h"

namespace nibble::server {
namespace {

using std::chrono::steady_clock;

// Variables of ours that a client may not replace. Tools and documents are refused as request
// fields, so they may not come in by this way either.
constexpr std::array<std::string_view, 4> kReservedVariables = {"messages", "add_generation_prompt",
                                                                "tools", "documents"};

// One choice's sink: knows which choice it is.
class ChoiceSink final : public engine::OutputSink {
 public:
  ChoiceSink(std::shared_ptr<GenerationSink> sink, int index)
      : sink_(std::move(sink)), index_(index) {}
  void OnOutput(engine::RequestOutput output) override {
    sink_->OnDelta(index_, std::move(output));
  }

 private:
  std::shared_ptr<GenerationSink> sink_;
  int index_;
};

absl::Status CheckCounts(const ServiceLimits& limits, const engine::EngineConfig& engine, int64_t n,
                         size_t num_prompts) {
  if (num_prompts == 0) return WithParam(InvalidArgument("there is no prompt"), "prompt");
  if (n < 1 || n > limits.max_choices) {
    return WithParam(InvalidArgument("n is {}, want 1..{}", n, limits.max_choices), "n");
  }
  if (num_prompts > static_cast<size_t>(limits.max_prompts)) {
    return WithParam(InvalidArgument("{} prompts in one request, the limit is {}", num_prompts,
                                     limits.max_prompts),
                     "prompt");
  }
  const int64_t num_choices = n * static_cast<int64_t>(num_prompts);
  if (num_choices > limits.max_choices) {
    return WithParam(InvalidArgument("{} prompts times n = {} make {} choices, the limit is {}",
                                     num_prompts, n, num_choices, limits.max_choices),
                     "n");
  }
  // Not RESOURCE_EXHAUSTED, which invites to try again: an empty queue is too small as well.
  if (num_choices > engine.max_queued_requests) {
    return WithParam(InvalidArgument("{} prompts times n = {} make {} sequences, the queue "
                                     "(max_queued_requests) holds {}",
                                     num_prompts, n, num_choices, engine.max_queued_requests),
                     "n");
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const ServedModel& model, const std::vector<int32_t>& ids) {
  if (ids.empty()) {
    return WithParam(InvalidArgument("the prompt is empty: it has no tokens"), "prompt");
  }
  const auto num_tokens = static_cast<int64_t>(ids.size());
  if (num_tokens >= model.max_model_len) {
    return WithParam(
        InvalidArgument("the prompt has {} tokens, the limit is {}: the context of {} less one for "
                        "the answer",
                        num_tokens, model.max_model_len - 1, model.max_model_len),
        "prompt");
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= model.vocab_size) {
      return WithParam(
          InvalidArgument("prompt token id {} is outside 0..{}", id, model.vocab_size - 1),
          "prompt");
    }
  }
  return absl::OkStatus();
}

struct TimeLimit {
  steady_clock::time_point deadline = steady_clock::time_point::max();
  double seconds = 0;  // from its arrival on, for messages
};

TimeLimit LimitOf(const GenerateRequest& request, std::chrono::nanoseconds server_limit) {
  TimeLimit limit{.deadline = request.deadline};
  if (server_limit.count() > 0) {
    limit.deadline = std::min(limit.deadline, request.arrival + server_limit);
  }
  if (limit.deadline != steady_clock::time_point::max()) {
    const std::chrono::duration<double> given = limit.deadline - request.arrival;
    limit.seconds = std::round(std::max(given.count(), 0.0) * 1e3) / 1e3;
  }
  return limit;
}

}  // namespace

GenerationService::~GenerationService() { deadlines_->Stop(); }

Generation::Generation(engine::Engine* engine, std::vector<engine::RequestId> ids,
                       int64_t num_prompt_tokens)
    : engine_(engine), ids_(std::move(ids)), num_prompt_tokens_(num_prompt_tokens) {}

void Generation::Cancel() {
  if (cancelled_.exchange(true)) return;
  for (const engine::RequestId id : ids_) engine_->Cancel(id);
}

GenerationService::GenerationService(Parts parts) : parts_(std::move(parts)) {
  const engine::Tokenizer& tokenizer = *parts_.tokenizer;
  token_bytes_.reserve(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    // A special token has no text of its own, but its name is written and read as text.
    const size_t size = std::max(tokenizer.TokenBytes(id).size(),
                                 tokenizer.IsSpecial(id) ? tokenizer.IdToToken(id).size() : 0);
    token_bytes_.push_back(static_cast<uint32_t>(size));
    longest_token_bytes_ = std::max(longest_token_bytes_, static_cast<int64_t>(size));
  }
}

absl::Status GenerationService::CheckEngine() const {
  // While the engine waits, requests wait in its queue: Submit refuses them when it has lasted too
  // long.
  const absl::Status health = parts_.engine->Health();
  if (!health.ok() && !absl::IsUnavailable(health)) {
    return Unavailable("the engine has failed: {}", std::string(health.message()));
  }
  return absl::OkStatus();
}

absl::Status GenerationService::CheckModelName(std::string_view name) const {
  if (name.empty() || name == parts_.model.name) return absl::OkStatus();
  // Long enough for any real name, and no more of a client's bytes in logs and answers.
  constexpr size_t kShown = 200;
  return WithParam(
      NotFound("the model \"{}\" does not exist; this server has \"{}\"",
               name.substr(0, CompleteUtf8Prefix(name.substr(0, kShown))), parts_.model.name),
      "model");
}

absl::StatusOr<std::vector<int32_t>> GenerationService::Tokenize(std::string_view text,
                                                                 bool add_special_tokens) const {
  if (static_cast<int64_t>(text.size()) > parts_.limits.max_prompt_bytes) {
    return WithParam(InvalidArgument("the prompt has {} bytes, the limit is {}", text.size(),
                                     parts_.limits.max_prompt_bytes),
                     "prompt");
  }
  return parts_.tokenizer->Encode(text, add_special_tokens);
}

absl::Status GenerationService::CheckTextFits(std::string_view text, std::string_view param) const {
  if (longest_token_bytes_ == 0) return absl::OkStatus();
  const int64_t limit = parts_.model.max_model_len * longest_token_bytes_;
  if (static_cast<int64_t>(text.size()) <= limit) return absl::OkStatus();
  return WithParam(
      InvalidArgument("the prompt has {} bytes; the context of {} tokens holds {} at most, for the "
                      "longest token has {}",
                      text.size(), parts_.model.max_model_len, limit, longest_token_bytes_),
      param);
}

absl::StatusOr<std::string> GenerationService::Detokenize(const std::vector<int32_t>& ids) const {
  int64_t num_bytes = 0;
  for (const int32_t id : ids) {
    // An id outside is the tokenizer's to refuse.
    if (id >= 0 && static_cast<size_t>(id) < token_bytes_.size()) {
      num_bytes += token_bytes_[static_cast<size_t>(id)];
    }
  }
  if (num_bytes > parts_.limits.max_detokenized_bytes) {
    return WithParam(InvalidArgument("the tokens make {} bytes of text, the limit is {}", num_bytes,
                                     parts_.limits.max_detokenized_bytes),
                     "tokens");
  }
  return parts_.tokenizer->Decode(ids, /*skip_special_tokens=*/false);
}

absl::StatusOr<std::string> GenerationService::RenderChat(const GenerateRequest::Chat& chat) const {
  if (parts_.chat_template == nullptr) {
    return InvalidArgument(
        "the model \"{}\" has no chat template; use /v1/completions or a token prompt",
        parts_.model.name);
  }
  if (chat.messages.empty()) {
    return WithParam(InvalidArgument("messages is empty, want at least one"), "messages");
  }
  nlohmann::ordered_json variables = parts_.template_variables.is_object()
                                         ? parts_.template_variables
                                         : nlohmann::ordered_json::object();
  auto messages = nlohmann::ordered_json::array();
  int64_t num_bytes = 0;
  for (size_t i = 0; i < chat.messages.size(); ++i) {
    const ChatMessage& message = chat.messages[i];
    if (!IsValidUtf8(message.role) || !IsValidUtf8(message.content) || !IsValidUtf8(message.name)) {
      return WithParam(InvalidArgument("messages[{}] is not valid UTF-8", i), "messages");
    }
    num_bytes += static_cast<int64_t>(message.content.size());
    if (num_bytes > parts_.limits.max_prompt_bytes) {
      return WithParam(InvalidArgument("messages[0..{}] have {} bytes, the limit is {}", i,
                                       num_bytes, parts_.limits.max_prompt_bytes),
                       "messages");
    }
    nlohmann::ordered_json entry = {{"role", message.role}, {"content", message.content}};
    if (!message.name.empty()) entry["name"] = message.name;
    messages.push_back(std::move(entry));
  }
  const nlohmann::ordered_json& kwargs = chat.template_kwargs;
  if (!kwargs.is_null() && !kwargs.is_object()) {
    return WithParam(InvalidArgument("chat_template_kwargs is not an object"),
                     "chat_template_kwargs");
  }
  for (const auto& [name, value] : kwargs.items()) {
    if (std::find(kReservedVariables.begin(), kReservedVariables.end(), name) !=
        kReservedVariables.end()) {
      return WithParam(InvalidArgument("chat_template_kwargs may not set \"{}\"", name),
                       "chat_template_kwargs");
    }
    variables[name] = value;
  }
  variables["messages"] = std::move(messages);
  variables["add_generation_prompt"] = chat.add_generation_prompt;
  // Templates ask for these by name, and transformers always defines them.
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  return parts_.chat_template->Render(variables, std::time(nullptr));
}

absl::StatusOr<std::vector<int32_t>> GenerationService::TokenizeChat(
    const GenerateRequest::Chat& chat) const {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, RenderChat(chat));
  NIBBLE_RETURN_IF_ERROR(CheckTextFits(text, "messages"));
  return Tokenize(text, /*add_special_tokens=*/false);
}

absl::StatusOr<engine::SamplingParams> GenerationService::ResolveSampling(
    const SamplingRequest& request, int64_t num_prompt_tokens, int64_t max_tokens_kept) const {
  const engine::GenerationConfig& defaults = parts_.defaults;
  const int64_t room = parts_.model.max_model_len - num_prompt_tokens;
  engine::SamplingParams params;
  if (request.max_tokens.has_value()) {
    if (*request.max_tokens > room) {
      return WithParam(
          InvalidArgument("the prompt has {} tokens and max_tokens is {}, together more than the "
                          "context of {} tokens",
                          num_prompt_tokens, *request.max_tokens, parts_.model.max_model_len),
          "max_tokens");
    }
    if (*request.max_tokens > max_tokens_kept) {
      return WithParam(
          InvalidArgument("max_tokens is {}, the limit is {} for an answer that is not streamed: "
                          "choices * max_tokens * (1 + top log probabilities) is at most {}",
                          *request.max_tokens, max_tokens_kept,
                          parts_.limits.max_whole_answer_entries),
          "max_tokens");
    }
    params.max_tokens = *request.max_tokens;
  } else {
    params.max_tokens = std::clamp<int64_t>(
        request.default_max_tokens.value_or(defaults.max_new_tokens.value_or(room)), 1,
        std::min(room, max_tokens_kept));
  }
  params.min_tokens = request.min_tokens.value_or(0);
  if (params.min_tokens < 0 || params.min_tokens > params.max_tokens) {
    return WithParam(InvalidArgument("min_tokens is {}, want 0..{}, which is max_tokens",
                                     params.min_tokens, params.max_tokens),
                     "min_tokens");
  }
  // The client's word, else the model's recommendation, else nibble's default.
  const auto choose = [](const auto& asked, const auto& recommended, auto* value) {
    if (asked.has_value()) {
      *value = *asked;
    } else if (recommended.has_value()) {
      *value = *recommended;
    }
  };
  choose(request.temperature, defaults.temperature, &params.temperature);
  choose(request.top_p, defaults.top_p, &params.top_p);
  choose(request.top_k, defaults.top_k, &params.top_k);
  if (params.top_k == -1) params.top_k = 0;
  choose(request.min_p, defaults.min_p, &params.min_p);
  choose(request.repetition_penalty, defaults.repetition_penalty, &params.repetition_penalty);
  params.presence_penalty = request.presence_penalty.value_or(0.0F);
  params.frequency_penalty = request.frequency_penalty.value_or(0.0F);
  params.logit_bias = request.logit_bias;
  if (request.seed.has_value()) params.seed = static_cast<uint64_t>(*request.seed);
  params.stop = request.stop;
  params.stop_token_ids = request.stop_token_ids;
  params.ignore_eos = request.ignore_eos;
  params.include_stop_str_in_output = request.include_stop_str_in_output;
  params.skip_special_tokens = request.skip_special_tokens;
  params.logprobs = request.logprobs.value_or(-1);
  return params;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> GenerationService::PromptTokens(
    GenerateRequest* request) const {
  if (const auto* chat = std::get_if<GenerateRequest::Chat>(&request->prompt)) {
    NIBBLE_RETURN_IF_ERROR(CheckCounts(parts_.limits, parts_.engine->config(), request->n, 1));
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TokenizeChat(*chat));
    std::vector<std::vector<int32_t>> prompts;
    prompts.push_back(std::move(ids));
    return prompts;
  }
  if (auto* tokens = std::get_if<GenerateRequest::TokenIds>(&request->prompt)) {
    NIBBLE_RETURN_IF_ERROR(
        CheckCounts(parts_.limits, parts_.engine->config(), request->n, tokens->prompts.size()));
    return std::move(tokens->prompts);
  }
  const auto& texts = std::get<GenerateRequest::Text>(request->prompt).prompts;
  NIBBLE_RETURN_IF_ERROR(
      CheckCounts(parts_.limits, parts_.engine->config(), request->n, texts.size()));
  int64_t num_bytes = 0;
  for (const std::string& text : texts) num_bytes += static_cast<int64_t>(text.size());
  if (num_bytes > parts_.limits.max_prompt_bytes) {
    return WithParam(InvalidArgument("the prompts have {} bytes, the limit is {}", num_bytes,
                                     parts_.limits.max_prompt_bytes),
                     "prompt");
  }
  std::vector<std::vector<int32_t>> prompts;
  for (const std::string& text : texts) NIBBLE_RETURN_IF_ERROR(CheckTextFits(text, "prompt"));
  for (const std::string& text : texts) {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, Tokenize(text, request->add_special_tokens));
    prompts.push_back(std::move(ids));
  }
  return prompts;
}

absl::StatusOr<std::shared_ptr<Generation>> GenerationService::Generate(
    GenerateRequest request, std::shared_ptr<GenerationSink> sink) {
  NIBBLE_RETURN_IF_ERROR(CheckEngine());
  NIBBLE_RETURN_IF_ERROR(CheckModelName(request.model));
  const TimeLimit limit = LimitOf(request, parts_.request_timeout);
  if (request.trace != nullptr) {
    request.trace->Edit([&](auto* facts) {
      facts->model = parts_.model.name;
      facts->stream = !request.whole_answer;
    });
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::vector<int32_t>> prompts, PromptTokens(&request));
  if (limit.deadline <= steady_clock::now()) {
    return absl::DeadlineExceededError(
        fmt::format("the request's {} s were over before it was admitted", limit.seconds));
  }

  std::vector<engine::EngineRequest> choices;
  int64_t num_prompt_tokens = 0;
  const int64_t num_choices = request.n * static_cast<int64_t>(prompts.size());
  const int64_t entries_per_token = 1 + std::max(request.sampling.logprobs.value_or(0), 0);
  const int64_t max_tokens_kept =
      request.whole_answer
          ? std::max<int64_t>(
                parts_.limits.max_whole_answer_entries / (num_choices * entries_per_token), 1)
          : std::numeric_limits<int64_t>::max();
  std::shared_ptr<DeadlineSink> in_time;
  if (limit.deadline != steady_clock::time_point::max()) {
    in_time =
        std::make_shared<DeadlineSink>(deadlines_, sink, request.trace, num_choices, limit.seconds);
    sink = in_time;
  }
  if (request.trace != nullptr) {
    sink = std::make_shared<TracingSink>(request.trace, parts_.trace_texts, sink);
  }
  engine::SamplingParams sampling;  // the last prompt's; they differ in max_tokens at most
  for (const std::vector<int32_t>& prompt : prompts) {
    NIBBLE_RETURN_IF_ERROR(CheckPrompt(parts_.model, prompt));
    const auto num_tokens = static_cast<int64_t>(prompt.size());
    num_prompt_tokens += num_tokens;
    NIBBLE_ASSIGN_OR_RETURN(sampling,
                            ResolveSampling(request.sampling, num_tokens, max_tokens_kept));
    for (int64_t c = 0; c < request.n; ++c) {
      engine::EngineRequest choice{
          .prompt_token_ids = prompt,
          .sampling = sampling,
          .priority = request.priority,
          .sink = std::make_shared<ChoiceSink>(sink, static_cast<int>(choices.size()))};
      // One seed would make all choices equal; consecutive ones keep them different and repeatable.
      if (sampling.seed.has_value())
        choice.sampling.seed = *sampling.seed + static_cast<uint64_t>(c);
      choices.push_back(std::move(choice));
    }
  }
  if (request.trace != nullptr) {
    std::string text = parts_.trace_texts ? PromptText(prompts) : "";
    request.trace->Edit([&](auto* facts) {
      facts->num_choices = num_choices;
      facts->num_prompt_tokens = num_prompt_tokens;
      facts->sampling = SamplingJson(sampling, request.n, request.priority);
      facts->prompt = std::move(text);
    });
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<engine::RequestId> ids,
                          parts_.engine->Submit(std::move(choices)));
  if (parts_.on_admitted) parts_.on_admitted(request.n);
  auto generation = std::make_shared<Generation>(parts_.engine, std::move(ids), num_prompt_tokens);
  if (in_time != nullptr) in_time->Watch(limit.deadline, generation);
  return generation;
}

std::string GenerationService::PromptText(const std::vector<std::vector<int32_t>>& prompts) const {
  std::string text;
  for (const std::vector<int32_t>& prompt : prompts) {
    const absl::StatusOr<std::string> decoded =
        parts_.tokenizer->Decode(prompt, /*skip_special_tokens=*/false);
    if (decoded.ok()) AppendTraced(*decoded, &text);
  }
  return text;
}

}  // namespace nibble::server
