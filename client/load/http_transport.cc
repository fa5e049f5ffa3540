// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/http_transport.h"

#include <iterator>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "fmt/format.h"

#include "base/json.h"
#include "client/http/printable.h"
#include "client/http/sse_parser.h"
#include "client/load/chunk_event.h"

namespace nibble::client {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxErrorBytes = 64 << 10;
constexpr size_t kMaxReasonBytes = 40;

std::string Dump(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

class HttpTransport final : public Transport, private HttpEvents {
 public:
  HttpTransport(std::string path, BodyWriter writer, const RequestFormat& format)
      : path_(std::move(path)),
        writer_(std::move(writer)),
        chat_(format.chat),
        timeout_seconds_(format.timeout_seconds) {}

  absl::Status Init(HttpStreamsOptions options) {
    NIBBLE_ASSIGN_OR_RETURN(streams_, HttpStreams::Create(std::move(options), this));
    return absl::OkStatus();
  }

  void Start(size_t idx, const LoadRequest& request) override {
    answers_.try_emplace(idx);
    streams_->Start(idx, {.method = "POST",
                          .path = path_,
                          .body = writer_.Write(request),
                          .timeout_seconds = timeout_seconds_});
  }
  void Poll(int64_t deadline_ns) override { streams_->Poll(deadline_ns); }
  void CancelAll() override { streams_->CancelAll(); }
  std::vector<int64_t> TakeWakeDelays() override { return streams_->TakeWakeDelays(); }
  int64_t TakeResends() override { return streams_->TakeResends(); }

 private:
  struct Answer {
    int status = 0;
    SseParser events;
    bool ended = false;      // the stream said so
    bool too_large = false;  // an event of it was
    std::string error;       // of an event of it
    std::string error_body;  // of an answer that is no stream
  };

  void OnHead(uint64_t id, int status) override { answers_[id].status = status; }

  void OnBody(uint64_t id, std::string_view bytes) override {
    Answer& answer = answers_[id];
    if (answer.status != 200) {
      answer.error_body += bytes.substr(0, kMaxErrorBytes - answer.error_body.size());
      return;
    }
    const bool fits =
        answer.events.Feed(bytes, [&](std::string_view data) { OnEvent(id, &answer, data); });
    if (fits) return;
    answer.too_large = true;
    streams_->Cancel(id);
  }

  void OnEvent(size_t idx, Answer* answer, std::string_view data) {
    if (data == "[DONE]") {
      answer->ended = true;
      return;
    }
    if (!ParseChunkEvent(data, chat_, &event_)) {
      if (answer->error.empty()) answer->error = "an event that is not JSON";
      return;
    }
    if (event_.is_error && answer->error.empty()) {
      answer->error = event_.error.empty() ? "an error event" : PrintableMessage(event_.error);
    }
    if (event_.has_tokens || !event_.finish_reason.empty()) events_->OnChunk(idx);
    if (!event_.finish_reason.empty()) {
      answer->ended = true;
      events_->OnFinishReason(idx, PrintableMessage(event_.finish_reason, kMaxReasonBytes));
    }
    if (event_.completion_tokens >= 0) {
      events_->OnUsage(idx, event_.prompt_tokens, event_.completion_tokens);
    }
  }

  void OnEnd(uint64_t id, const absl::Status& status) override {
    const auto found = answers_.find(id);
    const Answer answer = std::move(found->second);
    answers_.erase(found);
    events_->OnEnd(id, Verdict(answer, status));
  }

  static absl::Status Verdict(const Answer& answer, const absl::Status& status) {
    if (answer.too_large) return absl::ResourceExhaustedError(answer.events.LimitError());
    if (!status.ok()) return status;
    if (answer.status != 200) {
      return absl::UnknownError(ErrorText(answer.status, answer.error_body));
    }
    if (!answer.error.empty()) return absl::UnknownError(answer.error);
    if (!answer.ended) return Unavailable("the stream ended before the answer did");
    return absl::OkStatus();
  }

  const std::string path_;
  const BodyWriter writer_;
  const bool chat_;
  const double timeout_seconds_;
  ChunkEvent event_;  // its strings are used again
  std::unordered_map<size_t, Answer> answers_;
  std::unique_ptr<HttpStreams> streams_;
};

}  // namespace

absl::StatusOr<BodyWriter> BodyWriter::Create(const RequestFormat& format) {
  ordered_json body = {
      {"model", format.model}, {"stream", true}, {"stream_options", {{"include_usage", true}}}};
  if (format.ignore_eos) body["ignore_eos"] = true;
  const auto set = [&](const char* name, const auto& value) {
    if (value.has_value()) body[name] = *value;
  };
  set("temperature", format.sampling.temperature);
  set("top_p", format.sampling.top_p);
  set("top_k", format.sampling.top_k);
  set("min_p", format.sampling.min_p);
  set("frequency_penalty", format.sampling.frequency_penalty);
  set("presence_penalty", format.sampling.presence_penalty);
  set("repetition_penalty", format.sampling.repetition_penalty);
  if (!format.extra_body.empty()) {
    const absl::StatusOr<nlohmann::json> extra = ParseJson(format.extra_body);
    if (!extra.ok()) return Annotate(extra.status(), "--extra-body");
    if (!extra->is_object()) return InvalidArgument("--extra-body: want a JSON object");
    for (const char* name : {"prompt", "messages", "max_tokens", "max_completion_tokens", "stream",
                             "stream_options", "n", "model"}) {
      if (extra->contains(name)) {
        return InvalidArgument("--extra-body: '{}' is set for each request", name);
      }
    }
    for (const auto& [name, value] : extra->items()) body[name] = value;
  }
  BodyWriter writer;
  writer.chat_ = format.chat;
  writer.head_ = Dump(body);
  writer.head_.pop_back();  // the brace
  return writer;
}

std::string BodyWriter::Write(const LoadRequest& request) const {
  std::string body = head_;
  if (chat_) {
    body += ",\"messages\":[{\"role\":\"user\",\"content\":" + Dump(request.text) + "}]";
    body += fmt::format(",\"max_completion_tokens\":{}}}", request.output_tokens);
    return body;
  }
  if (request.token_ids.empty()) {
    body += ",\"prompt\":" + Dump(request.text);
  } else {
    body.reserve(body.size() + request.token_ids.size() * 6 + 64);
    body += ",\"prompt\":[";
    for (size_t i = 0; i < request.token_ids.size(); ++i) {
      if (i > 0) body.push_back(',');
      fmt::format_to(std::back_inserter(body), "{}", request.token_ids[i]);
    }
    body.push_back(']');
  }
  fmt::format_to(std::back_inserter(body), ",\"max_tokens\":{}}}", request.output_tokens);
  return body;
}

std::string ErrorText(int status, std::string_view body) {
  ChunkEvent event;
  const bool is_error = ParseChunkEvent(body, false, &event) && !event.error.empty();
  const std::string text = PrintableMessage(is_error ? std::string_view(event.error) : body);
  return text.empty() ? fmt::format("HTTP {}", status) : fmt::format("HTTP {}: {}", status, text);
}

absl::StatusOr<std::unique_ptr<Transport>> MakeHttpTransport(HttpStreamsOptions options,
                                                             std::string path,
                                                             const RequestFormat& format) {
  NIBBLE_ASSIGN_OR_RETURN(BodyWriter writer, BodyWriter::Create(format));
  auto transport = std::make_unique<HttpTransport>(std::move(path), std::move(writer), format);
  NIBBLE_RETURN_IF_ERROR(transport->Init(std::move(options)));
  return transport;
}

}  // namespace nibble::client
