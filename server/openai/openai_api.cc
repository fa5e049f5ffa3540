// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/openai_api.h"

#include <chrono>
#include <ctime>
#include <utility>

#include "fmt/format.h"

#include "base/json.h"
#include "server/admission/watched_sink.h"
#include "server/openai/api_error.h"
#include "server/openai/api_request.h"
#include "server/openai/preparation_pool.h"
#include "server/openai/response_sink.h"
#include "server/openai/sse_writer.h"
#include "server/request_log/request_id.h"

namespace nibble::server {
namespace {

constexpr std::string_view kJson = "application/json";

absl::StatusOr<nlohmann::json> ParseBody(const HttpRequest& request) {
  const std::string_view encoding = request.Header("content-encoding");
  if (!encoding.empty() && encoding != "identity") {
    return WithParam(InvalidArgument("Content-Encoding \"{}\": want a plain body", encoding),
                     "Content-Encoding");
  }
  return ParseJson(request.body);
}

std::string ModelJson(const ServedModel& model) {
  std::string json = "{\"id\":";
  AppendJsonString(model.name, &json);
  fmt::format_to(
      std::back_inserter(json),
      ",\"object\":\"model\",\"created\":{},\"owned_by\":\"nibble\",\"max_model_len\":{},"
      "\"vocab_size\":{}}}",
      model.created_unix_seconds, model.max_model_len, model.vocab_size);
  return json;
}

// What the client gives its request, from its arrival on.
absl::StatusOr<std::chrono::steady_clock::time_point> DeadlineOf(const HttpRequest& request) {
  constexpr std::string_view kHeader = "x-request-timeout";
  const std::string_view text = request.Header(kHeader);
  if (text.empty()) return std::chrono::steady_clock::time_point::max();
  const absl::StatusOr<std::chrono::nanoseconds> timeout = ParseTimeout(text);
  if (!timeout.ok()) return WithParam(timeout.status(), kHeader);
  return request.arrival + *timeout;
}

}  // namespace

class OpenAiApi::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(const ServiceGate* gate, OpenAiConfig config)
      : gate_(gate),
        config_(std::move(config)),
        preparation_(config_.num_preparation_threads, config_.max_waiting_preparations) {}

  void Register(HttpServer* server);
  // Routes keep this object beyond OpenAiApi's life, the service need not live so long.
  void Stop() { preparation_.Stop(); }

 private:
  // One request on its way to an answer.
  struct Call {
    std::string id;                        // 32 hex digits, unique in this process
    GenerationService* service = nullptr;  // null for what is answered without
    std::shared_ptr<HttpResponder> responder;
  };
  using Action = absl::Status (Impl::*)(const HttpRequest&, const Call&);
  enum class Needs { kNothing, kService };

  void Answer(Action action, const HttpRequest& request, const Call& call);
  // Answers now, or on a preparation thread.
  void Handle(Action action, Needs needs, HttpRequest request,
              std::shared_ptr<HttpResponder> responder);
  void Route(HttpServer* server, const char* method, const std::string& path, Action action,
             Needs needs = Needs::kService);
  static RequestLimits LimitsOf(const Call& call) {
    engine::SamplingLimits limits = call.service->engine().config().sampling_limits;
    limits.vocab_size = call.service->model().vocab_size;
    limits.max_model_len = call.service->model().max_model_len;
    return {.sampling = limits, .service = call.service->limits()};
  }

  // Each answers and returns OK, or returns the error to answer with.
  absl::Status Chat(const HttpRequest& request, const Call& call);
  absl::Status Completion(const HttpRequest& request, const Call& call);
  absl::Status Generate(const HttpRequest& http, ApiRequest request, const Call& call);
  absl::Status Tokenize(const HttpRequest& request, const Call& call);
  absl::Status Detokenize(const HttpRequest& request, const Call& call);
  absl::Status Models(const HttpRequest& request, const Call& call);
  absl::Status Model(const HttpRequest& request, const Call& call);
  absl::Status UnknownModel(const HttpRequest& request, const Call& call);
  absl::Status Version(const HttpRequest& request, const Call& call);
  absl::Status Metrics(const HttpRequest& request, const Call& call);

  const ServiceGate* const gate_;
  const OpenAiConfig config_;
  RequestIds ids_;
  PreparationPool preparation_;  // last: its tasks use all of the above
};

void OpenAiApi::Impl::Handle(Action action, Needs needs, HttpRequest request,
                             std::shared_ptr<HttpResponder> responder) {
  Call call{.id = ids_.Next(), .responder = std::move(responder)};
  if (needs == Needs::kService) {
    const absl::StatusOr<GenerationService*> service = gate_->Enter();
    if (!service.ok()) return SendError(call.responder.get(), service.status());
    call.service = *service;
  }
  if (static_cast<int64_t>(request.body.size()) <= config_.max_inline_body_bytes) {
    return Answer(action, request, call);
  }
  // Shared, because std::function wants to copy; `this` joins the threads before it goes.
  const auto shared = std::make_shared<const HttpRequest>(std::move(request));
  const absl::Status status =
      preparation_.Run([this, action, shared, call] { Answer(action, *shared, call); });
  if (!status.ok()) SendError(call.responder.get(), status);
}

void OpenAiApi::Impl::Answer(Action action, const HttpRequest& request, const Call& call) {
  const absl::Status status = (this->*action)(request, call);
  if (!status.ok()) SendError(call.responder.get(), status);
}

void OpenAiApi::Impl::Route(HttpServer* server, const char* method, const std::string& path,
                            Action action, Needs needs) {
  server->Handle(method, path,
                 [self = shared_from_this(), action, needs](
                     HttpRequest request, std::shared_ptr<HttpResponder> responder) {
                   self->Handle(action, needs, std::move(request), std::move(responder));
                 });
}

void OpenAiApi::Impl::Register(HttpServer* server) {
  Route(server, "POST", "/v1/chat/completions", &Impl::Chat);
  Route(server, "POST", "/v1/completions", &Impl::Completion);
  Route(server, "POST", "/tokenize", &Impl::Tokenize);
  Route(server, "POST", "/detokenize", &Impl::Detokenize);
  Route(server, "GET", "/v1/models", &Impl::Models);
  Route(server, "GET", "/v1/models/" + config_.model_name, &Impl::Model);
  Route(server, "GET", "/v1/models/*", &Impl::UnknownModel);
  // Ask nothing of the service.
  Route(server, "GET", "/version", &Impl::Version, Needs::kNothing);
  if (config_.metrics) Route(server, "GET", "/metrics", &Impl::Metrics, Needs::kNothing);
  server->SetErrorBody([](int status, const std::string& message) {
    return std::pair<std::string, std::string>(kJson, ErrorJson(status, message));
  });
}

absl::Status OpenAiApi::Impl::Chat(const HttpRequest& request, const Call& call) {
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json body, ParseBody(request));
  NIBBLE_ASSIGN_OR_RETURN(ApiRequest parsed, ParseChatRequest(body, LimitsOf(call)));
  if (parsed.generate.add_special_tokens) {
    // The native path adds none to a chat; a client that wants them gets its chat as text.
    NIBBLE_RETURN_IF_ERROR(call.service->CheckModelName(parsed.generate.model));
    NIBBLE_ASSIGN_OR_RETURN(
        std::string text,
        call.service->RenderChat(std::get<GenerateRequest::Chat>(parsed.generate.prompt)));
    GenerateRequest::Text prompt;
    prompt.prompts.push_back(std::move(text));
    parsed.generate.prompt = std::move(prompt);
  }
  return Generate(request, std::move(parsed), call);
}

absl::Status OpenAiApi::Impl::Completion(const HttpRequest& request, const Call& call) {
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json body, ParseBody(request));
  NIBBLE_ASSIGN_OR_RETURN(ApiRequest parsed, ParseCompletionRequest(body, LimitsOf(call)));
  return Generate(request, std::move(parsed), call);
}

absl::Status OpenAiApi::Impl::Generate(const HttpRequest& http, ApiRequest request,
                                       const Call& call) {
  int64_t num_prompts = 1;
  if (const auto* texts = std::get_if<GenerateRequest::Text>(&request.generate.prompt)) {
    num_prompts = static_cast<int64_t>(texts->prompts.size());
  } else if (const auto* ids = std::get_if<GenerateRequest::TokenIds>(&request.generate.prompt)) {
    num_prompts = static_cast<int64_t>(ids->prompts.size());
  }
  // The service refuses this too, but the sink is sized before it can.
  if (request.generate.n < 1 || request.generate.n > call.service->limits().max_choices) {
    return WithParam(InvalidArgument("n is {}, want 1..{}", request.generate.n,
                                     call.service->limits().max_choices),
                     "n");
  }
  std::string_view object = "text_completion";  // OpenAI streams and answers completions alike
  if (request.chat) object = request.stream ? "chat.completion.chunk" : "chat.completion";
  AnswerOptions options{.header = {.id = (request.chat ? "chatcmpl-" : "cmpl-") + call.id,
                                   .object = object,
                                   .created_unix_seconds = std::time(nullptr),
                                   .model = call.service->model().name,
                                   .system_fingerprint = config_.system_fingerprint},
                        .chat = request.chat,
                        .stream = request.stream,
                        .include_usage = request.include_usage,
                        .logprobs = request.logprobs,
                        .choices_per_prompt = request.generate.n,
                        .num_choices = num_prompts * request.generate.n,
                        .max_queued_bytes = config_.max_queued_bytes};
  request.generate.whole_answer = !request.stream;
  request.generate.trace = http.trace;
  request.generate.arrival = http.arrival;
  NIBBLE_ASSIGN_OR_RETURN(request.generate.deadline, DeadlineOf(http));
  const auto sink = MakeAnswerSink(std::move(options), &call.service->tokenizer(), call.responder);
  NIBBLE_ASSIGN_OR_RETURN(auto generation,
                          call.service->Generate(std::move(request.generate), sink));
  sink->Begin(std::move(generation));
  return absl::OkStatus();
}

absl::Status OpenAiApi::Impl::Tokenize(const HttpRequest& request, const Call& call) {
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json body, ParseBody(request));
  NIBBLE_ASSIGN_OR_RETURN(const TokenizeRequest parsed, ParseTokenizeRequest(body, LimitsOf(call)));
  NIBBLE_RETURN_IF_ERROR(call.service->CheckModelName(parsed.model));
  std::string text = parsed.prompt.value_or("");
  if (parsed.chat.has_value()) {
    NIBBLE_ASSIGN_OR_RETURN(text, call.service->RenderChat(*parsed.chat));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                          call.service->Tokenize(text, parsed.add_special_tokens));
  std::string json = fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":[{}]", ids.size(),
                                 call.service->model().max_model_len, fmt::join(ids, ","));
  json.append(",\"token_strs\":");
  if (parsed.return_token_strs) {
    json.push_back('[');
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) json.push_back(',');
      AppendJsonString(call.service->tokenizer().IdToToken(ids[i]), &json);
    }
    json.push_back(']');
  } else {
    json.append("null");
  }
  json.push_back('}');
  call.responder->Send(200, kJson, std::move(json));
  return absl::OkStatus();
}

absl::Status OpenAiApi::Impl::Detokenize(const HttpRequest& request, const Call& call) {
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json body, ParseBody(request));
  NIBBLE_ASSIGN_OR_RETURN(const DetokenizeRequest parsed,
                          ParseDetokenizeRequest(body, LimitsOf(call)));
  NIBBLE_RETURN_IF_ERROR(call.service->CheckModelName(parsed.model));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, call.service->Detokenize(parsed.tokens));
  std::string json = "{\"prompt\":";
  AppendJsonString(text, &json);
  json.push_back('}');
  call.responder->Send(200, kJson, std::move(json));
  return absl::OkStatus();
}

absl::Status OpenAiApi::Impl::Models(const HttpRequest&, const Call& call) {
  call.responder->Send(200, kJson,
                       "{\"object\":\"list\",\"data\":[" + ModelJson(call.service->model()) + "]}");
  return absl::OkStatus();
}

absl::Status OpenAiApi::Impl::Model(const HttpRequest&, const Call& call) {
  call.responder->Send(200, kJson, ModelJson(call.service->model()));
  return absl::OkStatus();
}

absl::Status OpenAiApi::Impl::UnknownModel(const HttpRequest& request, const Call& call) {
  constexpr std::string_view kParent = "/v1/models/";
  const std::string_view name = std::string_view(request.path).substr(kParent.size());
  if (name.empty()) return WithParam(NotFound("no model is named in the path"), "model");
  return call.service->CheckModelName(name);
}

absl::Status OpenAiApi::Impl::Version(const HttpRequest&, const Call& call) {
  std::string json = "{\"version\":";
  AppendJsonString(config_.version, &json);
  json.push_back('}');
  call.responder->Send(200, kJson, std::move(json));
  return absl::OkStatus();
}

absl::Status OpenAiApi::Impl::Metrics(const HttpRequest&, const Call& call) {
  call.responder->Send(200, "text/plain; version=0.0.4; charset=utf-8", config_.metrics());
  return absl::OkStatus();
}

OpenAiApi::OpenAiApi(const ServiceGate* gate, OpenAiConfig config)
    : impl_(std::make_shared<Impl>(gate, std::move(config))) {}
OpenAiApi::~OpenAiApi() { impl_->Stop(); }

void OpenAiApi::Register(HttpServer* server) { impl_->Register(server); }

}  // namespace nibble::server
