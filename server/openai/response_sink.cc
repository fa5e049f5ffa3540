// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/response_sink.h"

#include <iterator>
#include <mutex>
#include <utility>
#include <vector>

#include "fmt/format.h"

#include "base/log.h"
#include "server/openai/api_error.h"

namespace nibble::server {
namespace {

using engine::FinishReason;
using engine::RequestOutput;

constexpr std::string_view kJson = "application/json";

// What both forms of answer do alike. mutex_ guards everything: deltas come from the engine thread,
// Begin from an io thread.
class SinkBase : public AnswerSink {
 public:
  SinkBase(AnswerOptions options, const engine::Tokenizer* tokenizer,
           std::shared_ptr<HttpResponder> responder)
      : options_(std::move(options)),
        prefix_(FormatAnswerHeader(options_.header)),
        tokenizer_(tokenizer),
        responder_(std::move(responder)) {}

  void Begin(std::shared_ptr<Generation> generation) override {
    std::shared_ptr<HttpResponder> responder;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (over_) {
        if (gave_up_) generation->Cancel();
        return;
      }
      generation_ = generation;
      responder = responder_;
      OnBegin();
    }
    // Not under the lock: the callback runs at once when the client has left already.
    responder->OnDisconnect([generation] { generation->Cancel(); });
  }

  void OnDelta(int index, RequestOutput output) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (over_) return;
    if (output.finish_reason == FinishReason::kError) {
      return Fail(output.error.ok() ? Internal("the engine failed") : output.error);
    }
    if (output.finish_reason == FinishReason::kAbort) {
      // Ours to tell only if the client is still there: then the server is what stopped.
      return Fail(Unavailable("the request was aborted: the server is shutting down"));
    }
    if (output.finish_reason.has_value()) {
      ++num_finished_;
      usage_.completion_tokens += output.num_generated_tokens;
      if (index % options_.choices_per_prompt == 0) {  // each prompt counts once
        usage_.prompt_tokens += output.num_prompt_tokens;
        usage_.cached_tokens += output.num_cached_tokens;
      }
    }
    HandleDelta(index, std::move(output));
  }

 protected:
  // All with mutex_ held.
  virtual void OnBegin() {}
  virtual void HandleDelta(int index, RequestOutput output) = 0;
  virtual void SendFailure(const absl::Status& status) = 0;

  bool all_finished() const { return num_finished_ == options_.num_choices; }
  void End() {
    over_ = true;
    responder_.reset();
    generation_.reset();
  }
  // Stops what still runs for this request.
  void GiveUp() {
    gave_up_ = true;
    if (generation_ != nullptr) generation_->Cancel();
    End();
  }
  void Fail(const absl::Status& status) {
    SendFailure(status);
    GiveUp();
  }

  const AnswerOptions options_;
  const std::string prefix_;  // head of every JSON object of this answer
  const engine::Tokenizer* const tokenizer_;

  std::mutex mutex_;
  std::shared_ptr<HttpResponder> responder_;
  std::shared_ptr<Generation> generation_;  // null before Begin
  Usage usage_;
  int64_t num_finished_ = 0;
  bool over_ = false;
  bool gave_up_ = false;  // cancel in Begin, if it is still to come
};

class StreamSink final : public SinkBase {
 public:
  StreamSink(AnswerOptions options, const engine::Tokenizer* tokenizer,
             std::shared_ptr<HttpResponder> responder)
      : SinkBase(std::move(options), tokenizer, std::move(responder)),
        role_told_(static_cast<size_t>(options_.num_choices), false),
        text_offsets_(static_cast<size_t>(options_.num_choices), 0) {}

 private:
  void OnBegin() override { StartOnce(); }

  void StartOnce() {
    if (std::exchange(started_, true)) return;
    HttpHeaders headers;
    headers.emplace_back("Cache-Control", "no-cache");
    headers.emplace_back("X-Accel-Buffering", "no");  // proxies that buffer would undo streaming
    responder_->StartStream(200, "text/event-stream; charset=utf-8", std::move(headers));
  }

  // Closes `json` and sends it.
  void WriteChunk(std::string json) {
    json.append(options_.include_usage ? ",\"usage\":null}" : "}");
    responder_->Write(SseEvent(json));
  }

  void HandleDelta(int index, RequestOutput output) override {
    StartOnce();
    // Deltas that only hold text back tell a client nothing.
    if (!output.text.empty() || output.finish_reason.has_value() ||
        (options_.logprobs && !output.logprobs.empty())) {
      WriteChunk(FormatDelta(index, output));
    }
    if (all_finished()) {
      if (options_.include_usage) {
        std::string json = prefix_ + ",\"choices\":[],";
        AppendUsage(usage_, &json);
        json.push_back('}');
        responder_->Write(SseEvent(json));
      }
      responder_->Write(std::string(kSseDone));
      responder_->EndStream();
      return End();
    }
    if (const int64_t queued = responder_->queued_bytes(); queued > options_.max_queued_bytes) {
      log::Warning("{}: the client leaves {} bytes unread, the limit is {}: cancelled",
                   options_.header.id, queued, options_.max_queued_bytes);
      GiveUp();  // the dropped responder ends the connection
    }
  }

  std::string FormatDelta(int index, const RequestOutput& output) {
    std::string json = prefix_;
    fmt::format_to(std::back_inserter(json), ",\"choices\":[{{\"index\":{},", index);
    if (options_.chat) {
      json.append("\"delta\":{");
      // Who speaks is said with the first token, not before: to clients that measure, a chunk is
      // one.
      const bool first = !role_told_[static_cast<size_t>(index)];
      role_told_[static_cast<size_t>(index)] = true;
      if (first) json.append("\"role\":\"assistant\",");
      if (first || !output.text.empty()) {
        json.append("\"content\":");
        AppendJsonString(output.text, &json);
      }
      json.append("},");
    } else {
      json.append("\"text\":");
      AppendJsonString(output.text, &json);
      json.push_back(',');
    }
    json.append("\"logprobs\":");
    if (!options_.logprobs || output.logprobs.empty()) {
      json.append("null");
    } else if (options_.chat) {
      AppendChatLogprobs(output.logprobs, *tokenizer_, &json);
    } else {
      AppendCompletionLogprobs(output.logprobs, *tokenizer_,
                               &text_offsets_[static_cast<size_t>(index)], &json);
    }
    json.push_back(',');
    AppendFinish(output, &json);
    json.append("}]");
    return json;
  }

  void SendFailure(const absl::Status& status) override {
    if (!started_) return SendError(responder_.get(), status);
    // The status line is out; an error event is how OpenAI clients learn of it.
    responder_->Write(SseEvent(ErrorJson(status)));
    responder_->Write(std::string(kSseDone));
    responder_->EndStream();
  }

  bool started_ = false;
  std::vector<bool> role_told_;        // of each choice of a chat
  std::vector<int64_t> text_offsets_;  // of each choice, in characters
};

// Each choice is kept as JSON and grown delta by delta, so that the last delta, which the engine
// thread brings, only joins texts.
class WholeSink final : public SinkBase {
 public:
  WholeSink(AnswerOptions options, const engine::Tokenizer* tokenizer,
            std::shared_ptr<HttpResponder> responder)
      : SinkBase(std::move(options), tokenizer, std::move(responder)),
        choices_(static_cast<size_t>(options_.num_choices), Choice(options_.chat)) {}

 private:
  struct Choice {
    explicit Choice(bool chat) : logprobs(chat) {}
    std::string text;  // escaped, without quotes
    LogprobsText logprobs;
    std::string finish;
  };

  void HandleDelta(int index, RequestOutput output) override {
    Choice& choice = choices_[static_cast<size_t>(index)];
    AppendJsonEscaped(output.text, &choice.text);
    if (options_.logprobs) choice.logprobs.Append(output.logprobs, *tokenizer_);
    if (output.finish_reason.has_value()) AppendFinish(output, &choice.finish);
    if (!all_finished()) return;
    responder_->Send(200, kJson, FormatAnswer());
    choices_.clear();
    End();
  }

  std::string FormatAnswer() const {
    std::string json = prefix_ + ",\"choices\":[";
    for (size_t i = 0; i < choices_.size(); ++i) {
      const Choice& choice = choices_[i];
      fmt::format_to(std::back_inserter(json), "{}{{\"index\":{},", i == 0 ? "" : ",", i);
      json.append(options_.chat ? "\"message\":{\"role\":\"assistant\",\"content\":\""
                                : "\"text\":\"");
      json.append(choice.text);
      json.append(options_.chat ? "\",\"refusal\":null},\"logprobs\":" : "\",\"logprobs\":");
      if (options_.logprobs) {
        choice.logprobs.Finish(&json);
      } else {
        json.append("null");
      }
      json.append(",").append(choice.finish).append("}");
    }
    json.append("],");
    AppendUsage(usage_, &json);
    json.push_back('}');
    return json;
  }

  void SendFailure(const absl::Status& status) override { SendError(responder_.get(), status); }

  std::vector<Choice> choices_;
};

}  // namespace

std::shared_ptr<AnswerSink> MakeAnswerSink(AnswerOptions options,
                                           const engine::Tokenizer* tokenizer,
                                           std::shared_ptr<HttpResponder> responder) {
  if (options.stream) {
    return std::make_shared<StreamSink>(std::move(options), tokenizer, std::move(responder));
  }
  return std::make_shared<WholeSink>(std::move(options), tokenizer, std::move(responder));
}

}  // namespace nibble::server
