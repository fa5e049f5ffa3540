// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_exchange.h"

#include <optional>
#include <utility>

#include "fmt/core.h"

#include "server/http/http_format.h"

namespace nibble::server {
namespace {

// Up to here one write of head and body together is worth a copy.
constexpr size_t kCopiedBody = size_t{16} << 10;
// Of one answer, also when all together hold too much.
constexpr int64_t kAlwaysQueued = int64_t{16} << 10;

class Responder final : public HttpResponder {
 public:
  explicit Responder(std::shared_ptr<Exchange> exchange) : exchange_(std::move(exchange)) {}
  ~Responder() override { exchange_->OnResponderDropped(); }

  void Send(int status, std::string_view content_type, std::string body,
            HttpHeaders headers) override {
    exchange_->Send(status, content_type, std::move(body), headers);
  }
  void StartStream(int status, std::string_view content_type, HttpHeaders headers) override {
    exchange_->StartStream(status, content_type, headers);
  }
  void Write(std::string chunk) override { exchange_->Write(chunk); }
  void EndStream() override { exchange_->EndStream(); }
  int64_t queued_bytes() const override { return exchange_->queued_bytes(); }
  void OnDisconnect(std::function<void()> callback) override {
    exchange_->OnDisconnect(std::move(callback));
  }

 private:
  std::shared_ptr<Exchange> exchange_;
};

}  // namespace

Exchange::Exchange(Info info, std::shared_ptr<ConnectionLoop> loop, ExchangeOwner* owner)
    : info_(std::move(info)), loop_(std::move(loop)), owner_(owner), close_(!info_.keep_alive) {}

std::shared_ptr<HttpResponder> Exchange::MakeResponder() {
  return std::make_shared<Responder>(shared_from_this());
}

bool Exchange::AppendLocked(std::string_view bytes) {
  outbox_.append(bytes);
  AddQueuedLocked(static_cast<int64_t>(bytes.size()));
  return !std::exchange(wake_posted_, true);
}

void Exchange::AddQueuedLocked(int64_t num_bytes) {
  queued_bytes_ += num_bytes;
  info_.all_queued_bytes->fetch_add(num_bytes);
}

// Small answers pass always: those of probes, and the words of a refusal.
bool Exchange::HasRoomFor(int64_t queued, int64_t more) const {
  return queued + more <= kAlwaysQueued ||
         info_.all_queued_bytes->load() + more <= info_.max_queued_bytes;
}

void Exchange::Wake() {
  loop_->Post([self = shared_from_this()] {
    {
      const std::lock_guard<std::mutex> lock(self->mutex_);
      self->wake_posted_ = false;
    }
    if (self->owner_ != nullptr) self->owner_->OnExchangeReady();
  });
}

void Exchange::Send(int status, std::string_view content_type, std::string body,
                    const HttpHeaders& headers) {
  if (!HasRoomFor(0, static_cast<int64_t>(body.size()))) {
    const auto [error_type, error] = (*info_.error_body)(
        503, fmt::format("answers that clients do not take hold {} bytes, the limit is {}",
                         info_.all_queued_bytes->load(), info_.max_queued_bytes));
    return Send(503, error_type, error, {{"Retry-After", "1"}});
  }
  std::function<void()> release;  // destroyed after the lock, see invariant 2
  bool wake = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (detached_ || state_ != State::kOpen) return;
    state_ = State::kFinished;
    status_ = status;
    std::swap(release, on_disconnect_);
    // 304 has no body; a length would be that of the answer it stands for.
    std::optional<size_t> length;
    if (status != 304) length = body.size();
    wake = AppendLocked(FormatResponseHead({.status = status,
                                            .content_type = content_type,
                                            .content_length = length,
                                            .close = close_,
                                            .keep_alive = info_.http_1_0 && !close_,
                                            .request_id = info_.request_id},
                                           headers));
    if (info_.head_only) body.clear();
    if (body.size() <= kCopiedBody) {
      AppendLocked(body);
    } else {
      large_body_ = std::move(body);
      AddQueuedLocked(static_cast<int64_t>(large_body_.size()));
    }
  }
  if (wake) Wake();
}

void Exchange::StartStream(int status, std::string_view content_type, const HttpHeaders& headers) {
  bool wake = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (detached_ || state_ != State::kOpen) return;
    state_ = State::kStreaming;
    status_ = status;
    if (info_.http_1_0) close_ = true;  // the end of the connection is the end of the body
    wake = AppendLocked(FormatResponseHead({.status = status,
                                            .content_type = content_type,
                                            .chunked = !info_.http_1_0,
                                            .close = close_,
                                            .request_id = info_.request_id},
                                           headers));
  }
  if (wake) Wake();
}

void Exchange::Write(std::string_view chunk) {
  if (chunk.empty() || info_.head_only) return;
  bool wake = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (detached_ || state_ != State::kStreaming) return;
    // Whoever reads has little waiting, and is not to pay for those who do not.
    const bool is_cut_off = !HasRoomFor(queued_bytes_, static_cast<int64_t>(chunk.size()));
    if (is_cut_off) state_ = State::kAborted;
    if (is_cut_off || info_.http_1_0) {
      wake = AppendLocked(is_cut_off ? std::string_view() : chunk);
    } else {
      const size_t before = outbox_.size();
      AppendChunk(chunk, &outbox_);
      AddQueuedLocked(static_cast<int64_t>(outbox_.size() - before));
      wake = !std::exchange(wake_posted_, true);
    }
  }
  if (wake) Wake();
}

void Exchange::EndStream() {
  std::function<void()> release;
  bool wake = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (detached_ || state_ != State::kStreaming) return;
    state_ = State::kFinished;
    std::swap(release, on_disconnect_);
    wake = AppendLocked(info_.http_1_0 || info_.head_only ? std::string_view() : kLastChunk);
  }
  if (wake) Wake();
}

int64_t Exchange::queued_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return queued_bytes_;
}

int Exchange::status() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

void Exchange::OnDisconnect(std::function<void()> callback) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!detached_) {
      if (state_ == State::kOpen || state_ == State::kStreaming) {
        std::swap(on_disconnect_, callback);  // an earlier callback is released after the lock
      }
      return;
    }
    if (state_ == State::kFinished) return;
  }
  callback();
}

void Exchange::OnResponderDropped() {
  bool wake = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (detached_ || state_ == State::kFinished) return;
    if (state_ == State::kStreaming) {
      // Closing without the last chunk is how HTTP tells a client that the body is not whole.
      state_ = State::kAborted;
      wake = AppendLocked("");
    }
  }
  if (wake) Wake();
  const auto [content_type, body] = (*info_.error_body)(500, "the request was dropped unanswered");
  Send(500, content_type, body, {});  // does nothing if a stream had begun
}

bool Exchange::aborted() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_ == State::kAborted;
}

bool Exchange::complete() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_ == State::kFinished;
}

Exchange::Taken Exchange::Take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  Taken taken;
  std::string& from = outbox_.empty() ? large_body_ : outbox_;
  taken.bytes = std::exchange(from, std::string());
  taken.finished = state_ == State::kFinished && large_body_.empty();
  taken.close = close_;
  return taken;
}

void Exchange::OnSent(size_t num_bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  AddQueuedLocked(-static_cast<int64_t>(num_bytes));
}

void Exchange::Detach() {
  owner_ = nullptr;
  std::function<void()> callback;
  bool complete = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(detached_, true)) return;
    complete = state_ == State::kFinished;
    std::swap(callback, on_disconnect_);
    outbox_.clear();
    large_body_ = std::string();
    AddQueuedLocked(-queued_bytes_);
  }
  if (!complete && callback) callback();
}

}  // namespace nibble::server
