// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/link_sender.h"

#include <new>
#include <system_error>
#include <utility>

namespace nibble::comm {
namespace {

constexpr int kReceiver = 1;

}  // namespace

absl::Status StartThread(std::thread* thread, const std::string& peer_name,
                         std::function<void()> run) {
  try {
    *thread = std::thread(std::move(run));
  } catch (const std::system_error& error) {
    return ResourceExhausted("no thread for the link with {}: {}", peer_name, error.what());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LinkSender>> LinkSender::Create(LinkConnection connection,
                                                               std::chrono::nanoseconds timeout) {
  std::unique_ptr<LinkSender> sender(new LinkSender(std::move(connection), timeout));
  NIBBLE_RETURN_IF_ERROR(StartThread(&sender->thread_, sender->connection_.peer_name,
                                     [own = sender.get()] { own->Run(); }));
  return sender;
}

LinkSender::LinkSender(LinkConnection connection, std::chrono::nanoseconds timeout)
    : timeout_(timeout), connection_(std::move(connection)) {}

LinkSender::~LinkSender() {
  bool drops = false;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    drops = num_unsent_ > 0;
  }
  changed_.notify_all();
  if (drops) connection_.transport->Abort("the stage's link was closed");
  if (thread_.joinable()) thread_.join();
}

absl::Status LinkSender::Send(const float* data, int64_t num_values) {
  const auto count = static_cast<size_t>(num_values);
  {
    std::unique_lock lock(mutex_);
    if (!broken_.ok()) return broken_;
    if (num_unsent_ == 0 && !connection_.is_network()) {
      const absl::StatusOr<bool> sent =
          connection_.transport->TrySend(kReceiver, kBody, data, count * sizeof(float));
      if (!sent.ok()) return BreakLocked(sent.status());
      if (*sent) return absl::OkStatus();
    }
    NIBBLE_RETURN_IF_ERROR(WaitForBuffer(&lock));
  }
  try {
    buffers_[num_filled_ % buffers_.size()].assign(data, data + count);
  } catch (const std::bad_alloc&) {
    const std::lock_guard lock(mutex_);
    return BreakLocked(
        ResourceExhausted("no memory for {} values on their way to the next stage", count));
  }
  const std::lock_guard lock(mutex_);
  ++num_filled_;
  ++num_unsent_;
  changed_.notify_all();
  return broken_;
}

absl::Status LinkSender::WaitForBuffer(std::unique_lock<std::mutex>* lock) {
  const Deadline deadline = Deadline::After(timeout_);
  changed_.wait_until(*lock, deadline.at(),
                      [this] { return num_unsent_ < StageLink::kMaxUnsent || !broken_.ok(); });
  if (!broken_.ok()) return broken_;
  if (num_unsent_ < StageLink::kMaxUnsent) return absl::OkStatus();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(timeout_).count();
  const absl::Status late = absl::DeadlineExceededError(
      fmt::format("{} of the next stage took none of {} messages within {} ms",
                  connection_.peer_name, num_unsent_, ms));
  connection_.transport->Abort(std::string(late.message()));
  return BreakLocked(late);
}

absl::Status LinkSender::BreakLocked(const absl::Status& status) {
  if (broken_.ok()) broken_ = status;
  changed_.notify_all();
  return broken_;
}

void LinkSender::Abort(const std::string& reason) {
  connection_.transport->Abort(reason);
  const std::lock_guard lock(mutex_);
  BreakLocked(absl::AbortedError(reason)).IgnoreError();
}

void LinkSender::Run() {
  uint64_t num_sent = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return num_unsent_ > 0 || stopping_ || !broken_.ok(); });
    if (stopping_ || !broken_.ok()) break;
    const Buffer& buffer = buffers_[num_sent % buffers_.size()];
    lock.unlock();
    const absl::Status status = SendNow(buffer);
    lock.lock();
    if (!status.ok()) BreakLocked(status).IgnoreError();
    ++num_sent;
    --num_unsent_;
    changed_.notify_all();
  }
  // After an Abort this closes a connection whose other end would wait.
  const bool is_aborted = !broken_.ok();
  lock.unlock();
  if (is_aborted) connection_.transport->Progress();
}

absl::Status LinkSender::SendNow(const Buffer& buffer) {
  Transport* const transport = connection_.transport.get();
  const uint64_t num_values = buffer.size();
  const Deadline deadline = Deadline::After(timeout_);
  Ticket size = 0;
  if (connection_.is_network()) {
    NIBBLE_ASSIGN_OR_RETURN(size,
                            transport->Send(kReceiver, kSize, &num_values, sizeof(num_values)));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Ticket body, transport->Send(kReceiver, kBody, buffer.data(),
                                                             num_values * sizeof(float)));
  if (connection_.is_network()) NIBBLE_RETURN_IF_ERROR(transport->Wait(size, deadline));
  return transport->Wait(body, deadline);
}

}  // namespace nibble::comm
