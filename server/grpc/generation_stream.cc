// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/grpc/generation_stream.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "server/grpc/convert.h"

namespace nibble::server {
namespace {

class Reactor;

// Shared by the reactor (until OnDone) and the engine (until the last delta). Deltas that arrive
// while a message is being written are merged into one waiting message per choice, so a slow client
// costs memory for its answer and no more.
class Stream final : public GenerationSink {
 public:
  Stream(Reactor* reactor, const engine::Tokenizer* tokenizer, int64_t max_pending_bytes)
      : reactor_(reactor), tokenizer_(tokenizer), max_pending_bytes_(max_pending_bytes) {}

  void OnDelta(int index, engine::RequestOutput output) override;
  // The generation was submitted; deltas may have come already.
  void Attach(std::shared_ptr<Generation> generation);
  void OnWriteDone(bool ok);
  void Cancel();  // the client went away or its deadline passed
  void Detach();  // the reactor is about to be deleted

 private:
  void WriteNextLocked();
  void FinishLocked(const grpc::Status& status);

  std::mutex mutex_;
  // Everything below is guarded by mutex_, which is also held while calling the reactor: Detach
  // cannot come between.
  Reactor* reactor_;
  const engine::Tokenizer* tokenizer_;
  const int64_t max_pending_bytes_;
  std::shared_ptr<Generation> generation_;
  std::map<int, v1::GenerateResponse> pending_;  // by choice
  std::map<int, std::pair<int64_t, int64_t>>
      totals_;  // by choice: cached prompt tokens, generated tokens
  v1::GenerateResponse in_flight_;
  grpc::Status final_status_ = grpc::Status::OK;
  int num_finished_ = 0;
  bool writing_ = false;
  bool finished_ = false;  // Finish was called
  bool cancelled_ = false;
};

class Reactor final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  Reactor(const engine::Tokenizer* tokenizer, int64_t max_pending_bytes)
      : stream_(std::make_shared<Stream>(this, tokenizer, max_pending_bytes)) {}

  const std::shared_ptr<Stream>& stream() { return stream_; }
  void OnWriteDone(bool ok) override { stream_->OnWriteDone(ok); }
  void OnCancel() override { stream_->Cancel(); }
  void OnDone() override {
    stream_->Detach();
    delete this;
  }

 private:
  std::shared_ptr<Stream> stream_;
};

void Stream::OnDelta(int index, engine::RequestOutput output) {
  const std::lock_guard lock(mutex_);
  if (output.finish_reason.has_value()) {
    ++num_finished_;
    if (*output.finish_reason == engine::FinishReason::kError)
      final_status_ = ToGrpcStatus(output.error);
    if (*output.finish_reason == engine::FinishReason::kAbort && !cancelled_) {
      final_status_ = grpc::Status(grpc::StatusCode::UNAVAILABLE,
                                   "the server stopped before the answer was complete");
    }
  }
  if (finished_ || reactor_ == nullptr) return;
  totals_[index] = {output.num_cached_tokens, output.num_generated_tokens};
  v1::GenerateResponse& message = pending_[index];
  message.set_output_index(index);
  AppendDelta(std::move(output), *tokenizer_, &message);
  if (static_cast<int64_t>(message.ByteSizeLong()) > max_pending_bytes_) {
    if (generation_ != nullptr) generation_->Cancel();
    cancelled_ = true;
    FinishLocked(
        grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                     fmt::format("the client left more than {} bytes unread", max_pending_bytes_)));
    return;
  }
  WriteNextLocked();
}

void Stream::Attach(std::shared_ptr<Generation> generation) {
  const std::lock_guard lock(mutex_);
  generation_ = std::move(generation);
  if (cancelled_) {
    generation_->Cancel();
    return;
  }
  WriteNextLocked();
}

void Stream::WriteNextLocked() {
  // Before Attach nothing is written: usage needs the generation's totals.
  if (writing_ || finished_ || reactor_ == nullptr || generation_ == nullptr) return;
  const bool all_done = num_finished_ == generation_->num_choices();
  if (pending_.empty()) {
    if (all_done) FinishLocked(final_status_);
    return;
  }
  auto next = pending_.begin();
  in_flight_ = std::move(next->second);
  pending_.erase(next);
  if (all_done && pending_.empty()) {
    v1::Usage* usage = in_flight_.mutable_usage();
    usage->set_prompt_tokens(generation_->num_prompt_tokens());
    int64_t completion_tokens = 0;
    for (const auto& [index, total] : totals_) completion_tokens += total.second;
    usage->set_cached_prompt_tokens(totals_.begin()->second.first);
    usage->set_completion_tokens(completion_tokens);
  }
  writing_ = true;
  reactor_->StartWrite(&in_flight_);
}

void Stream::OnWriteDone(bool ok) {
  const std::lock_guard lock(mutex_);
  writing_ = false;
  if (!ok) {
    cancelled_ = true;
    if (generation_ != nullptr) generation_->Cancel();
    FinishLocked(grpc::Status::CANCELLED);
    return;
  }
  WriteNextLocked();
}

void Stream::Cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (generation_ != nullptr) generation_->Cancel();
  FinishLocked(grpc::Status::CANCELLED);
}

void Stream::Detach() {
  const std::lock_guard lock(mutex_);
  reactor_ = nullptr;
  pending_.clear();
}

void Stream::FinishLocked(const grpc::Status& status) {
  if (finished_ || reactor_ == nullptr) return;
  finished_ = true;
  pending_.clear();
  reactor_->Finish(status);
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerationStream(
    grpc::CallbackServerContext* context, GenerationService* service,
    absl::StatusOr<GenerateRequest> request, int64_t max_pending_bytes) {
  auto* reactor = new Reactor(&service->tokenizer(), max_pending_bytes);
  // The reactor may be deleted as soon as it finished the call: keep the stream, and touch the
  // reactor only through it.
  const std::shared_ptr<Stream> stream = reactor->stream();
  absl::StatusOr<std::shared_ptr<Generation>> generation =
      request.ok() ? service->Generate(*std::move(request), stream)
                   : absl::StatusOr<std::shared_ptr<Generation>>(request.status());
  if (!generation.ok()) {
    AddRetryHint(generation.status(), context);
    reactor->Finish(ToGrpcStatus(generation.status()));
    return reactor;
  }
  stream->Attach(*std::move(generation));
  return reactor;
}

}  // namespace nibble::server
