// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/chat/conversation.h"

#include <utility>

#include "base/clock.h"
#include "base/json.h"
#include "base/utf8.h"
#include "client/http/printable.h"
#include "client/http/sse_parser.h"

namespace nibble::client {
namespace {

// What an error answer says, or its start when it is not of the API's form.
std::string ErrorText(const HttpResponse& response) {
  const absl::StatusOr<nlohmann::json> json = ParseJson(response.body);
  if (json.ok() && json->is_object() && json->contains("error") && (*json)["error"].is_object() &&
      (*json)["error"].contains("message") && (*json)["error"]["message"].is_string()) {
    return PrintableMessage((*json)["error"]["message"].get_ref<const std::string&>());
  }
  return PrintableMessage(response.body);
}

absl::Status WithRemedy(const absl::Status& refused, int http_status) {
  if (http_status != 401) return refused;
  return Unavailable("{} (--api-key KEY, or NIBBLE_API_KEY in the environment)",
                     std::string(refused.message()));
}

// Takes one chunk of a streamed chat completion apart.
class ChunkReader {
 public:
  explicit ChunkReader(const std::function<void(std::string_view)>* on_text)
      : on_text_(on_text), start_ns_(Clock::Monotonic().NowNs()) {}

  void Read(std::string_view data) {
    if (done_ || !error_.empty()) return;
    if (data == "[DONE]") {
      done_ = true;
      return;
    }
    const absl::StatusOr<nlohmann::json> parsed = ParseJson(data);
    if (!parsed.ok() || !parsed->is_object()) {
      error_ = "the server sent an event that is not JSON";
      return;
    }
    try {
      ReadChunk(*parsed);
    } catch (const nlohmann::json::exception& exception) {
      error_ = fmt::format("the server sent a chunk of another form: {}", exception.what());
    }
  }

  void Fail(std::string error) { error_ = std::move(error); }
  bool done() const { return done_; }
  const std::string& error() const { return error_; }
  const std::string& answer() const { return answer_; }
  TurnStats Finish() {
    stats_.total_seconds = Seconds();
    return stats_;
  }

 private:
  double Seconds() const {
    return static_cast<double>(Clock::Monotonic().NowNs() - start_ns_) * 1e-9;
  }

  void ReadChunk(const nlohmann::json& chunk) {
    if (chunk.contains("error")) {
      const nlohmann::json& error = chunk["error"];
      error_ = PrintableMessage(error.is_object() ? error.value("message", "") : "");
      if (error_.empty()) error_ = "the server reported an error";
      return;
    }
    if (const auto usage = chunk.find("usage"); usage != chunk.end() && usage->is_object()) {
      stats_.prompt_tokens = usage->value("prompt_tokens", int64_t{0});
      stats_.completion_tokens = usage->value("completion_tokens", int64_t{0});
    }
    for (const nlohmann::json& choice : chunk.at("choices")) {
      if (const auto reason = choice.find("finish_reason");
          reason != choice.end() && reason->is_string()) {
        stats_.finish_reason = PrintableMessage(reason->get_ref<const std::string&>(), 40);
      }
      const auto delta = choice.find("delta");
      if (delta == choice.end()) continue;
      const auto content = delta->find("content");
      if (content == delta->end() || !content->is_string() ||
          content->get_ref<const std::string&>().empty())
        continue;
      if (answer_.empty()) stats_.first_token_seconds = Seconds();
      answer_ += content->get_ref<const std::string&>();
      (*on_text_)(content->get_ref<const std::string&>());
    }
  }

  const std::function<void(std::string_view)>* on_text_;
  int64_t start_ns_;
  bool done_ = false;
  std::string error_;
  std::string answer_;
  TurnStats stats_;
};

}  // namespace

Conversation::Conversation(HttpClient client, const ChatOptions& options)
    : client_(std::move(client)), options_(options) {
  Reset();
}

void Conversation::Reset() {
  messages_ = nlohmann::json::array();
  if (!options_.system.empty())
    messages_.push_back({{"role", "system"}, {"content", options_.system}});
}

absl::StatusOr<std::string> Conversation::FindModel() {
  if (!options_.model.empty()) return options_.model;
  NIBBLE_ASSIGN_OR_RETURN(const HttpResponse response, client_.Get("/v1/models"));
  if (response.status != 200) {
    return WithRemedy(Unavailable("the server answered {} to /v1/models: {}", response.status,
                                  ErrorText(response)),
                      response.status);
  }
  const absl::StatusOr<nlohmann::json> json = ParseJson(response.body);
  try {
    if (json.ok()) options_.model = json->at("data").at(0).at("id").get<std::string>();
  } catch (const nlohmann::json::exception&) {
    options_.model.clear();
  }
  if (options_.model.empty()) return Unavailable("the server's /v1/models lists no model");
  return options_.model;
}

nlohmann::json Conversation::RequestBody() const {
  nlohmann::json body = {{"model", options_.model},
                         {"messages", messages_},
                         {"stream", true},
                         {"stream_options", {{"include_usage", true}}}};
  if (options_.temperature) body["temperature"] = *options_.temperature;
  if (options_.top_p) body["top_p"] = *options_.top_p;
  if (options_.seed) body["seed"] = *options_.seed;
  if (options_.max_tokens) body["max_tokens"] = *options_.max_tokens;
  return body;
}

absl::StatusOr<TurnStats> Conversation::Say(const std::string& text,
                                            const std::function<void(std::string_view)>& on_text,
                                            const std::atomic<bool>& cancel) {
  if (!IsValidUtf8(text)) return InvalidArgument("the line is not valid UTF-8");
  messages_.push_back({{"role", "user"}, {"content", text}});
  ChunkReader reader(&on_text);
  SseParser events;
  const auto on_data = [&](std::string_view bytes) {
    const bool fits = events.Feed(bytes, [&](std::string_view data) { reader.Read(data); });
    if (!fits) reader.Fail("the server sent " + events.LimitError());
    return fits;
  };
  const absl::StatusOr<HttpResponse> response =
      client_.PostStream("/v1/chat/completions", RequestBody().dump(), on_data, cancel);
  const auto remember = [&] {
    messages_.push_back({{"role", "assistant"}, {"content", reader.answer()}});
  };
  const auto forget = [&] { messages_.erase(messages_.end() - 1); };
  if (absl::IsCancelled(response.status()) && reader.error().empty()) {
    remember();
    return response.status();
  }
  absl::Status status = response.status();
  if (absl::IsCancelled(status)) {
    status = absl::UnavailableError(reader.error());
  } else if (status.ok() && response->status != 200) {
    status = Unavailable("the server answered {}: {}", response->status, ErrorText(*response));
  } else if (status.ok() && !reader.error().empty()) {
    status = absl::UnavailableError(reader.error());
  } else if (status.ok() && !reader.done()) {
    status = Unavailable("the connection ended before the answer was complete");
  }
  if (!status.ok()) {
    forget();
    return response.ok() ? WithRemedy(status, response->status) : status;
  }
  remember();
  return reader.Finish();
}

}  // namespace nibble::client
