// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/link_receiver.h"

#include <algorithm>
#include <new>
#include <utility>

namespace nibble::comm {
namespace {

constexpr int kSender = 0;
// 1 GiB: more than any step's activations.
constexpr uint64_t kMaxValues = uint64_t{1} << 28;
// A stage that has nothing to do waits for its next message; its owner's deadline is Receive's.
constexpr std::chrono::hours kIdle{24 * 365};

}  // namespace

absl::StatusOr<std::unique_ptr<LinkReceiver>> LinkReceiver::Create(
    LinkConnection connection, std::chrono::nanoseconds timeout) {
  if (connection.is_network()) return AheadLinkReceiver::Create(std::move(connection), timeout);
  return std::make_unique<DirectLinkReceiver>(std::move(connection), timeout);
}

DirectLinkReceiver::DirectLinkReceiver(LinkConnection connection, std::chrono::nanoseconds timeout)
    : timeout_(timeout), connection_(std::move(connection)) {}

absl::Status DirectLinkReceiver::Receive(float* data, int64_t num_values) {
  NIBBLE_ASSIGN_OR_RETURN(
      const Ticket ticket,
      connection_.transport->Receive(kSender, kBody, data,
                                     static_cast<size_t>(num_values) * sizeof(float)));
  return connection_.transport->Wait(ticket, Deadline::After(timeout_));
}

absl::StatusOr<std::unique_ptr<LinkReceiver>> AheadLinkReceiver::Create(
    LinkConnection connection, std::chrono::nanoseconds timeout) {
  std::unique_ptr<AheadLinkReceiver> receiver(
      new AheadLinkReceiver(std::move(connection), timeout));
  NIBBLE_RETURN_IF_ERROR(StartThread(&receiver->thread_, receiver->connection_.peer_name,
                                     [own = receiver.get()] { own->Run(); }));
  return receiver;
}

AheadLinkReceiver::AheadLinkReceiver(LinkConnection connection, std::chrono::nanoseconds timeout)
    : timeout_(timeout), connection_(std::move(connection)) {}

AheadLinkReceiver::~AheadLinkReceiver() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  connection_.transport->Abort("the stage's link was closed");
  if (thread_.joinable()) thread_.join();
}

absl::Status AheadLinkReceiver::Receive(float* data, int64_t num_values) {
  {
    std::unique_lock lock(mutex_);
    const auto came = [this] { return num_waiting_ > 0 || !ended_.ok() || !broken_.ok(); };
    changed_.wait_until(lock, Deadline::After(timeout_).at(), came);
    if (!broken_.ok()) return broken_;
    if (num_waiting_ == 0 && !ended_.ok()) return ended_;
    if (num_waiting_ == 0) {
      lock.unlock();
      const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(timeout_).count();
      return Break(absl::DeadlineExceededError(fmt::format(
          "{} of the previous stage sent no message within {} ms", connection_.peer_name, ms)));
    }
  }
  const Buffer& buffer = buffers_[num_taken_ % buffers_.size()];
  if (buffer.size() != static_cast<size_t>(num_values)) {
    return Break(DataLoss("{} of the previous stage sent {} values where {} were expected",
                          connection_.peer_name, buffer.size(), num_values));
  }
  std::copy(buffer.begin(), buffer.end(), data);
  const std::lock_guard lock(mutex_);
  ++num_taken_;
  --num_waiting_;
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status AheadLinkReceiver::Break(const absl::Status& status) {
  connection_.transport->Abort(std::string(status.message()));
  const std::lock_guard lock(mutex_);
  if (broken_.ok()) broken_ = status;
  changed_.notify_all();
  return broken_;
}

void AheadLinkReceiver::Abort(const std::string& reason) {
  Break(absl::AbortedError(reason)).IgnoreError();
}

void AheadLinkReceiver::Run() {
  uint64_t num_received = 0;
  absl::Status status;
  for (;;) {
    status = ReceiveNext(&buffers_[num_received % buffers_.size()]);
    std::unique_lock lock(mutex_);
    if (!status.ok()) {
      ended_ = status;
      break;
    }
    ++num_received;
    ++num_waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return num_waiting_ < kMaxAhead || stopping_ || !broken_.ok(); });
    if (stopping_ || !broken_.ok()) break;
  }
  changed_.notify_all();
  // After an error or an Abort this closes the connection, whose other end would wait.
  connection_.transport->Progress();
}

absl::Status AheadLinkReceiver::ReceiveNext(Buffer* buffer) {
  Transport* const transport = connection_.transport.get();
  uint64_t num_values = 0;
  NIBBLE_ASSIGN_OR_RETURN(const Ticket size,
                          transport->Receive(kSender, kSize, &num_values, sizeof(num_values)));
  NIBBLE_RETURN_IF_ERROR(transport->Wait(size, Deadline::After(kIdle)));
  absl::Status status;
  if (num_values > kMaxValues) {
    status = DataLoss("{} of the previous stage announced {} values, the limit is {}",
                      connection_.peer_name, num_values, kMaxValues);
  }
  try {
    if (status.ok()) buffer->resize(num_values);
  } catch (const std::bad_alloc&) {
    status =
        ResourceExhausted("no memory for {} values from {}", num_values, connection_.peer_name);
  }
  if (!status.ok()) {
    transport->Abort(std::string(status.message()));
    return status;
  }
  NIBBLE_ASSIGN_OR_RETURN(const Ticket body, transport->Receive(kSender, kBody, buffer->data(),
                                                                num_values * sizeof(float)));
  return transport->Wait(body, Deadline::After(timeout_));
}

}  // namespace nibble::comm
