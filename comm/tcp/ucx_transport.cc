// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/tcp/ucx_transport.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "base/log.h"

namespace nibble::comm {
namespace {

using namespace std::chrono_literals;

// How long a wait polls before it sleeps. Waking costs 5 us on bare metal and 50 us in a virtual
// machine; with a shorter spin than that two ranks that talk can fall into waking each other for
// every message (measured: 127 us instead of 15 for a round trip).
constexpr std::chrono::nanoseconds kSpin = 200us;
// UCX looks at its own timers only while it progresses.
constexpr std::chrono::nanoseconds kLongestSleep = 200ms;
// What a transport that did its work may take to hand its last bytes to the kernel.
constexpr std::chrono::milliseconds kFlush = 1s;
// Of a message; fits UCX's send segment (ucx_worker.cc) with both headers, so that it stays whole.
constexpr size_t kPieceBytes = 56 << 10;
// Sent to a peer without an end behind it (StartSend). An end costs 2 to 5 us, as much as a third
// of a small message's round trip, and a socket has room for more than this unless it holds far
// more.
constexpr size_t kMaxUnendedBytes = 64 << 10;
// Of messages that nobody has asked for yet, from all peers: a group that is in step has a few; a
// peer that runs away is stopped here.
constexpr size_t kMaxEarlyBytes = size_t{1} << 30;
// Log lines about messages from outside the group.
constexpr uint64_t kMaxRefusals = 10;

}  // namespace

absl::Status UcxTransport::CheckUsable() {
  if (!broken_.ok() || !aborted_.load(std::memory_order_acquire)) return broken_;
  std::string reason;
  {
    const std::lock_guard lock(mutex_);
    reason = abort_reason_;
  }
  return Break(absl::AbortedError(reason));
}

absl::Status UcxTransport::CheckPeer(int peer) {
  NIBBLE_RETURN_IF_ERROR(CheckUsable());
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

bool UcxTransport::StartPiece(const Peer& peer, Piece* piece, const void* data, size_t bytes,
                              Operation* operation) {
  const ucp_request_param_t params = {};
  void* const request = ucx_.am_send_nbx(peer.endpoint, kMessageId, &piece->header, sizeof(Header),
                                         data, bytes, &params);
  if (UCS_PTR_IS_ERR(request)) {
    operation->status =
        Unavailable("{} is gone: {}", peer.name, ucx_.status_string(UCS_PTR_STATUS(request)));
    return false;
  }
  piece->request = request;
  return true;
}

void UcxTransport::StartSend(Peer* peer, Kind kind, uint64_t tag, const void* data, size_t bytes,
                             Operation* operation) {
  const size_t num_pieces = bytes == 0 ? 1 : (bytes + kPieceBytes - 1) / kPieceBytes;
  operation->pieces.resize(num_pieces + 1);
  bool at_once = true;
  for (size_t i = 0; i < num_pieces; ++i) {
    const size_t offset = i * kPieceBytes;
    Piece& piece = operation->pieces[i];
    piece.header = {.nonce = own_.nonce,
                    .tag = tag,
                    .bytes = bytes,
                    .offset = offset,
                    .sequence = kind == kData ? peer->sent++ : 0,
                    .kind = kind,
                    .rank = static_cast<uint32_t>(rank())};
    const auto* const from = static_cast<const std::byte*>(data);
    if (!StartPiece(*peer, &piece, bytes == 0 ? nullptr : from + offset,
                    std::min(kPieceBytes, bytes - offset), operation)) {
      return;
    }
    at_once = at_once && piece.request == nullptr;
  }
  // To UCX a piece is done once it lies in UCX's own buffer, though the socket may have taken a
  // part of it only. The rest leaves while somebody progresses, but who has waited may sleep. UCX
  // takes nothing behind such a rest: when it has taken the end, the socket has all that came
  // before.
  peer->unended_bytes += bytes;
  const size_t max_unended_bytes = may_sleep_ ? 0 : kMaxUnendedBytes;
  if (kind != kData || (at_once && peer->unended_bytes <= max_unended_bytes)) {
    operation->pieces.pop_back();
    return;
  }
  peer->unended_bytes = 0;
  Piece& end = operation->pieces.back();
  end.header = {.nonce = own_.nonce, .kind = kEnd, .rank = static_cast<uint32_t>(rank())};
  StartPiece(*peer, &end, nullptr, 0, operation);
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
  operation->buffer = static_cast<std::byte*>(buffer);
  operation->bytes = bytes;
  const auto early =
      std::ranges::find_if(peer.early, [tag](const Early& one) { return one.tag == tag; });
  if (early == peer.early.end()) {
    peer.posted.push_back(operation.get());
  } else {
    if (early->bytes != bytes) return Break(SizesDiffer(peer, tag, early->bytes, bytes));
    operation->received = early->data.size();
    if (operation->received > 0) std::memcpy(buffer, early->data.data(), operation->received);
    if (peer.arriving_early && &*early == &peer.early.back()) {
      peer.arriving_early = false;
      peer.arriving = operation.get();
    } else {
      operation->done = true;
    }
    early_bytes_ -= bytes;
    peer.early.erase(early);
  }
  operations_[next_ticket_] = std::move(operation);
  return next_ticket_++;
}

bool UcxTransport::Done(Operation* operation) {
  if (operation->done || !operation->status.ok()) return true;
  if (operation->pieces.empty()) return false;
  for (; operation->pieces_sent < operation->pieces.size(); ++operation->pieces_sent) {
    void*& request = operation->pieces[operation->pieces_sent].request;
    if (request == nullptr) continue;
    const ucs_status_t status = ucx_.request_check_status(request);
    if (status == UCS_INPROGRESS) return false;
    ucx_.request_free(request);
    request = nullptr;
    if (status != UCS_OK) {
      operation->status =
          Unavailable("{} is gone: {}", peers_[static_cast<size_t>(operation->peer)].name,
                      ucx_.status_string(status));
      return true;
    }
  }
  operation->done = true;
  return true;
}

UcxTransport::Peer* UcxTransport::SenderOf(const Header& header) {
  if (header.rank < peers_.size()) {
    Peer& peer = peers_[header.rank];
    if (peer.transport != nullptr && peer.nonce == header.nonce) return &peer;
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
  // A rendezvous, which we never ask for: `data` is no data then.
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0) return UCS_ERR_REJECTED;
  Header header;
  if (transport->closing_ || header_length != sizeof(header)) return UCS_OK;
  std::memcpy(&header, header_bytes, sizeof(header));
  Peer* const peer = transport->SenderOf(header);
  if (peer == nullptr || !peer->failure.ok()) return UCS_OK;
  switch (header.kind) {
    case kHello:
      peer->said_hello = true;
      break;
    case kWelcome:
      peer->said_welcome = true;
      break;
    case kData:
      peer->failure = transport->Deliver(peer, header, static_cast<const std::byte*>(data), bytes);
      break;
    case kEnd:
      break;
    default:
      peer->failure = DataLoss("{} sent a message of kind {}", peer->name, header.kind);
  }
  return UCS_OK;
}

// The first piece: to whom the message goes.
absl::Status UcxTransport::BeginArrival(Peer* peer, const Header& header) {
  const auto posted = std::ranges::find_if(
      peer->posted, [&header](const Operation* one) { return one->tag == header.tag; });
  if (posted != peer->posted.end()) {
    if ((*posted)->bytes != header.bytes) {
      return SizesDiffer(*peer, header.tag, header.bytes, (*posted)->bytes);
    }
    peer->arriving = *posted;
    peer->posted.erase(posted);
    return absl::OkStatus();
  }
  if (header.bytes > kMaxEarlyBytes || early_bytes_ + header.bytes > kMaxEarlyBytes) {
    return absl::ResourceExhaustedError(fmt::format(
        "{} sent {} bytes that nobody has asked for, beside {} that wait; the limit is {}",
        peer->name, header.bytes, early_bytes_, kMaxEarlyBytes));
  }
  early_bytes_ += header.bytes;
  peer->early.push_back({.tag = header.tag, .bytes = header.bytes, .data = {}});
  peer->arriving_early = true;
  return absl::OkStatus();
}

// Grows with what has come, whatever size the header names. UCX calls us: nothing may be thrown.
absl::Status UcxTransport::Append(const Peer& peer, Early* early, const std::byte* data,
                                  size_t bytes) {
  try {
    early->data.insert(early->data.end(), data, data + bytes);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("no memory for {} bytes from {} that nobody has asked for yet",
                             early->data.size() + bytes, peer.name);
  }
  return absl::OkStatus();
}

absl::Status UcxTransport::Deliver(Peer* peer, const Header& header, const std::byte* data,
                                   size_t bytes) {
  const auto due = [peer, &header](uint64_t expected_offset) {
    return DataLoss("{} sent piece {} at offset {}, but piece {} at offset {} was due", peer->name,
                    header.sequence, header.offset, peer->received, expected_offset);
  };
  const bool begins = peer->arriving == nullptr && !peer->arriving_early;
  if (begins) {
    if (header.sequence != peer->received || header.offset != 0) return due(0);
    NIBBLE_RETURN_IF_ERROR(BeginArrival(peer, header));
  }
  Operation* const operation = peer->arriving;
  Early* const early = operation == nullptr ? &peer->early.back() : nullptr;
  const size_t whole = early != nullptr ? early->bytes : operation->bytes;
  const size_t received = early != nullptr ? early->data.size() : operation->received;
  if (header.sequence != peer->received || header.offset != received || header.bytes != whole ||
      bytes > whole - received || (bytes == 0 && whole > 0)) {
    return due(received);
  }
  ++peer->received;
  if (early != nullptr) {
    NIBBLE_RETURN_IF_ERROR(Append(*peer, early, data, bytes));
  } else {
    if (bytes > 0) std::memcpy(operation->buffer + received, data, bytes);
    operation->received += bytes;
  }
  if (received + bytes == whole) {
    if (operation != nullptr) operation->done = true;
    peer->arriving = nullptr;
    peer->arriving_early = false;
  }
  return absl::OkStatus();
}

void UcxTransport::OnError(void* argument, ucp_ep_h /*endpoint*/, ucs_status_t status) {
  auto* const peer = static_cast<Peer*>(argument);
  if (peer->failure.ok()) {
    peer->failure =
        Unavailable("{} is gone: {}", peer->name, peer->transport->ucx_.status_string(status));
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
  NIBBLE_RETURN_IF_ERROR(CheckUsable());
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
  if (CheckUsable().ok()) worker_->Progress();
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

void UcxTransport::FreeRequests(Operation* operation) const {
  for (Piece& piece : operation->pieces) {
    if (piece.request != nullptr) ucx_.request_free(piece.request);
    piece.request = nullptr;
  }
}

void UcxTransport::TearDown(bool flush) {
  closing_ = true;
  worker_->CloseEndpoints(flush ? kFlush : 0ms);
  for (const auto& [ticket, operation] : operations_) FreeRequests(operation.get());
  for (const auto& greeting : greetings_) FreeRequests(greeting.get());
  worker_.reset();
  operations_.clear();
  greetings_.clear();
  peers_.clear();
}

}  // namespace nibble::comm
