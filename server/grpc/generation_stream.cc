// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/generation_stream.h"

#include <chrono>
#include <map>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "server/grpc/convert.h"

namespace nibble::server {
namespace {

using engine::FinishReason;
using engine::RequestOutput;

// What a waiting delta costs in memory, about, and never less than on the wire. Counting it while
// it is small is cheaper than asking a growing message for its size.
int64_t WaitingBytes(const RequestOutput& output) {
  constexpr size_t kLogprobBytes = sizeof(v1::TokenLogprob) + sizeof(std::string);
  size_t num_bytes = sizeof(v1::GenerateResponse) + output.text.size() +
                     output.token_ids.size() * (sizeof(int32_t) + 1);
  for (const engine::TokenLogprobs& logprobs : output.logprobs) {
    num_bytes += (1 + logprobs.top.size()) * kLogprobBytes;
  }
  return static_cast<int64_t>(num_bytes);
}

// The reactor that gRPC drives, and the sink that the engine writes.
//
// Invariants
//  1. It lives until gRPC is done with it (self_, dropped in OnDone) and the engine has given the
//     last delta (it holds the sink), in whichever order.
//  2. gRPC's functions are called under mutex_, and none once finished_: OnDone comes only after
//     the call was finished, so the engine may go on writing into a stream whose call is gone. gRPC
//     runs its reactions on threads of its own and never within such a call, so mutex_ is free.
//  3. One message is being written; what comes meanwhile waits, merged into one message per choice.
class Stream final : public grpc::ServerWriteReactor<v1::GenerateResponse>, public GenerationSink {
 public:
  Stream(grpc::CallbackServerContext* context, const engine::Tokenizer* tokenizer,
         int64_t max_pending_bytes, LoggedCall call)
      : context_(context),
        tokenizer_(tokenizer),
        max_pending_bytes_(max_pending_bytes),
        call_(std::move(call)) {}

  // Before anything else: the stream owns itself until OnDone.
  void Hold(std::shared_ptr<Stream> self) { self_ = std::move(self); }
  // The request was submitted; deltas may have come already.
  void Begin(std::shared_ptr<Generation> generation);
  // It was not: ends the call.
  void Refuse(const absl::Status& status);

  void OnDelta(int index, RequestOutput output) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;  // the client went away, or its deadline passed
  void OnDone() override;

 private:
  struct Waiting {
    v1::GenerateResponse message;
    int64_t num_bytes = 0;
  };

  void WriteNextLocked();
  void FailLocked(const absl::Status& status);
  void FinishLocked(const grpc::Status& status);

  std::shared_ptr<Stream> self_;
  grpc::CallbackServerContext* const context_;  // gone after OnDone
  const engine::Tokenizer* const tokenizer_;    // null: to be refused
  const int64_t max_pending_bytes_;
  LoggedCall call_;

  std::mutex mutex_;
  // Guarded by mutex_:
  std::shared_ptr<Generation> generation_;  // null before Begin
  std::map<int, Waiting> pending_;          // by choice
  int64_t pending_bytes_ = 0;               // of all
  int last_index_ = -1;                     // choices are written in turn
  int num_finished_ = 0;
  v1::Usage usage_;  // of finished choices
  v1::GenerateResponse in_flight_;
  bool writing_ = false;
  bool finished_ = false;                         // the call's last operation was started
  grpc::StatusCode code_ = grpc::StatusCode::OK;  // that the call ends with
};

void Stream::Begin(std::shared_ptr<Generation> generation) {
  const std::lock_guard lock(mutex_);
  generation_ = std::move(generation);
  if (finished_) {
    generation_->Cancel();
  } else {
    WriteNextLocked();
  }
}

void Stream::Refuse(const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  FailLocked(status);
}

void Stream::OnDelta(int index, RequestOutput output) {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  if (output.finish_reason == FinishReason::kError) {
    return FailLocked(output.error.ok() ? Internal("the engine failed") : output.error);
  }
  if (output.finish_reason == FinishReason::kAbort) {
    return FailLocked(Unavailable("the server stopped before the answer was complete"));
  }
  if (output.finish_reason.has_value()) {
    ++num_finished_;
    usage_.set_completion_tokens(usage_.completion_tokens() + output.num_generated_tokens);
    // The prompt is counted once, as the first choice found it.
    if (index == 0) usage_.set_cached_prompt_tokens(output.num_cached_tokens);
  }
  const int64_t num_bytes = WaitingBytes(output);
  pending_bytes_ += num_bytes;
  if (pending_bytes_ > max_pending_bytes_) {
    log::Warning("gRPC client {}: more than {} bytes unread: cancelled", context_->peer(),
                 max_pending_bytes_);
    // Without a retry hint: it is the client that must change.
    return FinishLocked(
        grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                     fmt::format("the client left more than {} bytes unread", max_pending_bytes_)));
  }
  Waiting& waiting = pending_[index];
  waiting.num_bytes += num_bytes;
  waiting.message.set_output_index(index);
  AppendDelta(std::move(output), *tokenizer_, &waiting.message);
  WriteNextLocked();
}

void Stream::WriteNextLocked() {
  // Before Begin it is not known which message is the last.
  if (writing_ || finished_ || generation_ == nullptr || pending_.empty()) return;
  auto next = pending_.upper_bound(last_index_);
  if (next == pending_.end()) next = pending_.begin();
  last_index_ = next->first;
  in_flight_ = std::move(next->second.message);
  pending_bytes_ -= next->second.num_bytes;
  pending_.erase(next);
  if (pending_.empty() && num_finished_ == generation_->num_choices()) {
    usage_.set_prompt_tokens(generation_->num_prompt_tokens());
    *in_flight_.mutable_usage() = usage_;
    finished_ = true;
    StartWriteAndFinish(&in_flight_, grpc::WriteOptions(), grpc::Status::OK);
    return;
  }
  writing_ = true;
  StartWrite(&in_flight_);
}

void Stream::OnWriteDone(bool ok) {
  const std::lock_guard lock(mutex_);
  writing_ = false;
  if (ok) {
    WriteNextLocked();
  } else {
    FinishLocked(grpc::Status::CANCELLED);
  }
}

void Stream::OnCancel() {
  const std::lock_guard lock(mutex_);
  // The client sees either only if it is still there; the log tells them apart.
  const bool too_late = context_->deadline() <= std::chrono::system_clock::now();
  FinishLocked(
      too_late ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "the call's deadline has passed")
               : grpc::Status::CANCELLED);
}

void Stream::OnDone() {
  {
    const std::lock_guard lock(mutex_);
    call_.End(code_);
  }
  // May delete this, here at the end.
  const std::shared_ptr<Stream> self = std::move(self_);
}

void Stream::FailLocked(const absl::Status& status) {
  if (finished_) return;
  AddRetryHint(status, context_);
  FinishLocked(ToGrpcStatus(status));
}

// Ends the call before its answer is whole. A write may be outstanding: gRPC sends the status after
// it.
void Stream::FinishLocked(const grpc::Status& status) {
  if (generation_ != nullptr) generation_->Cancel();
  if (finished_) return;
  finished_ = true;
  code_ = status.error_code();
  pending_.clear();
  Finish(status);
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerationStream(
    grpc::CallbackServerContext* context, absl::StatusOr<GenerationService*> service,
    absl::StatusOr<GenerateRequest> request, int64_t max_pending_bytes, LoggedCall call) {
  if (request.ok()) request->trace = call.trace();
  const auto stream =
      std::make_shared<Stream>(context, service.ok() ? &(*service)->tokenizer() : nullptr,
                               max_pending_bytes, std::move(call));
  stream->Hold(stream);
  const auto submit = [&]() -> absl::StatusOr<std::shared_ptr<Generation>> {
    NIBBLE_RETURN_IF_ERROR(service.status());
    NIBBLE_RETURN_IF_ERROR(request.status());
    return (*service)->Generate(*std::move(request), stream);
  };
  absl::StatusOr<std::shared_ptr<Generation>> generation = submit();
  if (generation.ok()) {
    stream->Begin(*std::move(generation));
  } else {
    stream->Refuse(generation.status());
  }
  return stream.get();
}

}  // namespace nibble::server
