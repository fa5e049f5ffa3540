// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/tcp/ucx_transport.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"

namespace nibble::comm {
namespace {

using namespace std::chrono_literals;

// How long a wait polls before it sleeps: a round trip of a small message takes 15 us, waking 5 to
// 20 us more.
constexpr std::chrono::nanoseconds kSpin = 50us;
// UCX looks at its own timers only while it progresses.
constexpr std::chrono::nanoseconds kLongestSleep = 200ms;
// What a transport that did its work may take to hand its last bytes to the kernel.
constexpr std::chrono::milliseconds kFlush = 1s;
// Of small messages that nobody has asked for yet, from all peers: a group that is in step has a
// few; a peer that runs away is stopped here.
constexpr size_t kMaxEarlyBytes = size_t{1} << 30;
// Log lines about messages from outside the group.
constexpr uint64_t kMaxRefusals = 10;

}  // namespace

absl::Status UcxTransport::CheckPeer(int peer) const {
  if (!broken_.ok()) return broken_;
  if (peer < 0 || peer >= size() || peer == rank()) {
    return InvalidArgument("rank {} has no peer {}, it is one of {} ranks", rank(), peer, size());
  }
  if (peers_[static_cast<size_t>(peer)].endpoint == nullptr) {
    return absl::FailedPreconditionError("the transport is not connected");
  }
  return absl::OkStatus();
}

absl::Status UcxTransport::SizesDiffer(const Peer& peer, uint64_t tag, size_t sent,
                                       size_t expected) const {
  return DataLoss("{} sent {} bytes with tag {} where {} were expected", peer.name, sent, tag,
                  expected);
}

void UcxTransport::StartSend(Peer* peer, Kind kind, uint64_t tag, const void* data, size_t bytes,
                             Operation* operation) {
  operation->header = {.nonce = own_.nonce,
                       .tag = tag,
                       .bytes = bytes,
                       .sequence = kind == kData ? peer->sent++ : 0,
                       .kind = kind,
                       .rank = static_cast<uint32_t>(rank())};
  const ucp_request_param_t params = {};
  void* const request = ucp_am_send_nbx(peer->endpoint, kMessageId, &operation->header,
                                        sizeof(Header), data, bytes, &params);
  if (UCS_PTR_IS_ERR(request)) {
    operation->done = true;
    operation->status =
        Unavailable("{} is gone: {}", peer->name, ucs_status_string(UCS_PTR_STATUS(request)));
  } else {
    operation->request = request;
    operation->done = request == nullptr;
  }
}

absl::StatusOr<Ticket> UcxTransport::Send(int peer, uint64_t tag, const void* data, size_t bytes) {
  NIBBLE_RETURN_IF_ERROR(CheckPeer(peer));
  auto operation = std::make_unique<Operation>();
  operation->peer = peer;
  operation->tag = tag;
  operation->bytes = bytes;
  StartSend(&peers_[static_cast<size_t>(peer)], kData, tag, data, bytes, operation.get());
  operations_[next_ticket_] = std::move(operation);
  return next_ticket_++;
}

absl::StatusOr<Ticket> UcxTransport::Receive(int peer_rank, uint64_t tag, void* buffer,
                                             size_t bytes) {
  NIBBLE_RETURN_IF_ERROR(CheckPeer(peer_rank));
  Peer& peer = peers_[static_cast<size_t>(peer_rank)];
  auto operation = std::make_unique<Operation>();
  operation->peer = peer_rank;
  operation->tag = tag;
  operation->buffer = buffer;
  operation->bytes = bytes;
  const auto early =
      std::ranges::find_if(peer.early, [tag](const Early& one) { return one.tag == tag; });
  if (early == peer.early.end()) {
    peer.posted.push_back(operation.get());
  } else {
    if (early->bytes != bytes) return Break(SizesDiffer(peer, tag, early->bytes, bytes));
    if (early->descriptor != nullptr) {
      Fetch(early->descriptor, operation.get());
    } else {
      if (bytes > 0) std::memcpy(buffer, early->data.data(), bytes);
      early_bytes_ -= bytes;
      operation->done = true;
    }
    peer.early.erase(early);
  }
  operations_[next_ticket_] = std::move(operation);
  return next_ticket_++;
}

void UcxTransport::Fetch(void* descriptor, Operation* operation) {
  const ucp_request_param_t params = {};
  void* const request = ucp_am_recv_data_nbx(worker_->get(), descriptor, operation->buffer,
                                             operation->bytes, &params);
  if (UCS_PTR_IS_ERR(request)) {
    operation->done = true;
    operation->status =
        Unavailable("{} is gone: {}", peers_[static_cast<size_t>(operation->peer)].name,
                    ucs_status_string(UCS_PTR_STATUS(request)));
  } else {
    operation->request = request;
    operation->done = request == nullptr;
  }
}

bool UcxTransport::Done(Operation* operation) {
  if (operation->request == nullptr) return operation->done;
  const ucs_status_t status = ucp_request_check_status(operation->request);
  if (status == UCS_INPROGRESS) return false;
  ucp_request_free(operation->request);
  operation->request = nullptr;
  operation->done = true;
  if (status != UCS_OK) {
    operation->status =
        Unavailable("{} is gone: {}", peers_[static_cast<size_t>(operation->peer)].name,
                    ucs_status_string(status));
  }
  return true;
}

UcxTransport::Peer* UcxTransport::SenderOf(const Header& header, size_t bytes) {
  if (header.rank < peers_.size()) {
    Peer& peer = peers_[header.rank];
    if (peer.transport != nullptr && peer.nonce == header.nonce && header.bytes == bytes) {
      return &peer;
    }
  }
  if (num_refused_++ < kMaxRefusals) {
    log::Warning(
        "group {}, generation {}: refused a message of one that calls itself rank {} and is not of "
        "this generation",
        own_.group_id, own_.generation, header.rank);
  }
  return nullptr;
}

ucs_status_t UcxTransport::OnMessage(void* self, const void* header_bytes, size_t header_length,
                                     void* data, size_t bytes, const ucp_am_recv_param_t* param) {
  auto* const transport = static_cast<UcxTransport*>(self);
  const bool is_large = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  const ucs_status_t refused = is_large ? UCS_ERR_REJECTED : UCS_OK;
  Header header;
  if (transport->closing_ || header_length != sizeof(header)) return refused;
  std::memcpy(&header, header_bytes, sizeof(header));
  Peer* const peer = transport->SenderOf(header, bytes);
  if (peer == nullptr) return refused;
  switch (header.kind) {
    case kHello:
      peer->said_hello = true;
      return UCS_OK;
    case kWelcome:
      peer->said_welcome = true;
      return UCS_OK;
    case kData:
      return transport->Deliver(peer, header, data, is_large);
    default:
      peer->failure = DataLoss("{} sent a message of kind {}", peer->name, header.kind);
      return refused;
  }
}

ucs_status_t UcxTransport::Deliver(Peer* peer, const Header& header, void* data, bool is_large) {
  const ucs_status_t refused = is_large ? UCS_ERR_REJECTED : UCS_OK;
  if (header.sequence != peer->received++) {
    peer->failure = DataLoss("{} sent message {}, but number {} was due", peer->name,
                             header.sequence, peer->received - 1);
    return refused;
  }
  const auto posted = std::ranges::find_if(
      peer->posted, [&header](const Operation* one) { return one->tag == header.tag; });
  if (posted == peer->posted.end()) {
    Early early = {.tag = header.tag, .bytes = header.bytes, .data = {}, .descriptor = nullptr};
    if (is_large) {
      early.descriptor = data;
    } else {
      early_bytes_ += header.bytes;
      if (early_bytes_ > kMaxEarlyBytes) {
        peer->failure = absl::ResourceExhaustedError(
            fmt::format("{} bytes that nobody has asked for, the last of {}; the limit is {}",
                        early_bytes_, peer->name, kMaxEarlyBytes));
        return refused;
      }
      const auto* const from = static_cast<const std::byte*>(data);
      early.data.assign(from, from + header.bytes);
    }
    peer->early.push_back(std::move(early));
    return is_large ? UCS_INPROGRESS : UCS_OK;
  }
  Operation* const operation = *posted;
  peer->posted.erase(posted);
  if (operation->bytes != header.bytes) {
    operation->done = true;
    operation->status = SizesDiffer(*peer, header.tag, header.bytes, operation->bytes);
    return refused;
  }
  if (is_large) {
    Fetch(data, operation);
    return UCS_INPROGRESS;
  }
  if (header.bytes > 0) std::memcpy(operation->buffer, data, header.bytes);
  operation->done = true;
  return UCS_OK;
}

void UcxTransport::OnError(void* argument, ucp_ep_h /*endpoint*/, ucs_status_t status) {
  auto* const peer = static_cast<Peer*>(argument);
  if (peer->failure.ok()) {
    peer->failure = Unavailable("{} is gone: {}", peer->name, ucs_status_string(status));
  }
}

absl::Status UcxTransport::Until(const std::function<bool()>& done, const Peer* peer,
                                 Deadline deadline) {
  auto moved = Deadline::Clock::now();
  for (;;) {
    if (aborted_.load(std::memory_order_acquire)) {
      const std::lock_guard lock(mutex_);
      return absl::AbortedError(abort_reason_);
    }
    if (done()) return absl::OkStatus();
    if (peer != nullptr && !peer->failure.ok()) return peer->failure;
    const bool progressed = worker_->Progress();
    const auto now = Deadline::Clock::now();
    if (progressed) moved = now;
    if (now >= deadline.at()) {
      if (done()) return absl::OkStatus();
      return absl::DeadlineExceededError("");
    }
    if (now - moved > kSpin) {
      worker_->Sleep(wake_fd_, std::min(deadline.Remaining(), kLongestSleep));
      moved = Deadline::Clock::now();
    }
  }
}

absl::Status UcxTransport::Wait(Ticket ticket, Deadline deadline) {
  if (!broken_.ok()) return broken_;
  const auto found = operations_.find(ticket);
  if (found == operations_.end()) {
    return InvalidArgument("ticket {} was waited for already", ticket);
  }
  Operation* const operation = found->second.get();
  const Peer& peer = peers_[static_cast<size_t>(operation->peer)];
  const auto start = Deadline::Clock::now();
  absl::Status status = Until([this, operation] { return Done(operation); }, &peer, deadline);
  if (absl::IsDeadlineExceeded(status)) {
    const std::chrono::duration<double> waited = Deadline::Clock::now() - start;
    status = absl::DeadlineExceededError(
        fmt::format("{} did not move {} bytes with tag {} within {:.3f} s", peer.name,
                    operation->bytes, operation->tag, waited.count()));
  }
  if (status.ok()) status = operation->status;
  if (!status.ok()) return Break(status);
  operations_.erase(found);
  return absl::OkStatus();
}

void UcxTransport::Progress() {
  if (broken_.ok() && !aborted_.load(std::memory_order_acquire)) worker_->Progress();
}

void UcxTransport::Abort(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (aborted_.load(std::memory_order_relaxed)) return;
    abort_reason_ = reason;
    aborted_.store(true, std::memory_order_release);
  }
  const uint64_t one = 1;
  // Cannot fail: the counter has room for 2^64 - 2 of them.
  [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
}

absl::Status UcxTransport::Break(absl::Status status) {
  broken_ = std::move(status);
  TearDown(false);
  return broken_;
}

void UcxTransport::TearDown(bool flush) {
  closing_ = true;
  for (Peer& peer : peers_) {
    for (const Early& early : peer.early) {
      if (early.descriptor != nullptr) ucp_am_data_release(worker_->get(), early.descriptor);
    }
    peer.early.clear();
    peer.posted.clear();
  }
  worker_->CloseEndpoints(flush ? kFlush : 0ms);
  for (const auto& [ticket, operation] : operations_) {
    if (operation->request != nullptr) ucp_request_free(operation->request);
  }
  for (const auto& greeting : greetings_) {
    if (greeting->request != nullptr) ucp_request_free(greeting->request);
  }
  worker_.reset();
  operations_.clear();
  greetings_.clear();
}

}  // namespace nibble::comm
