// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/shm_transport.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "base/check.h"

namespace nibble::comm {
namespace {

// Precedes every message in the ring. Headers and messages begin at multiples of its size, which
// divides the ring's: no header is cut by the ring's end.
struct MessageHeader {
  uint64_t tag;
  uint64_t bytes;
};
constexpr size_t kUnit = sizeof(MessageHeader);
static_assert(kUnit == 16);

// More than any machine has: the header is no header.
constexpr uint64_t kMaxMessageBytes = uint64_t{1} << 48;

// Parts of the ring after which the other side is told, so that both sides copy at the same time.
constexpr size_t kPartsPerRing = 4;

constexpr size_t RoundUp(size_t bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; }

}  // namespace

ShmTransport::ShmTransport(ShmSegment* segment)
    : segment_(segment),
      ring_bytes_(segment->ring_bytes()),
      peers_(static_cast<size_t>(segment->size())) {}

absl::StatusOr<Ticket> ShmTransport::Send(int peer, uint64_t tag, const void* data, size_t bytes) {
  // Never written to, as it sends.
  auto* const from = const_cast<std::byte*>(static_cast<const std::byte*>(data));
  NIBBLE_ASSIGN_OR_RETURN(
      const Ticket ticket,
      Begin({.peer = peer, .sends = true, .tag = tag, .data = from, .bytes = bytes}));
  peers_[static_cast<size_t>(peer)].sends.push_back(IndexOf(ticket));
  Write(peer);
  return ticket;
}

absl::StatusOr<Ticket> ShmTransport::Receive(int peer, uint64_t tag, void* buffer, size_t bytes) {
  NIBBLE_ASSIGN_OR_RETURN(
      const Ticket ticket,
      Begin({.peer = peer, .tag = tag, .data = static_cast<std::byte*>(buffer), .bytes = bytes}));
  Peer& from = peers_[static_cast<size_t>(peer)];
  Operation& operation = operations_[IndexOf(ticket)];
  const auto aside = std::find_if(from.asides.begin(), from.asides.end(),
                                  [tag](const Aside& message) { return message.tag == tag; });
  if (aside == from.asides.end()) {
    from.receives.push_back(IndexOf(ticket));
    return ticket;
  }
  if (aside->bytes != bytes) return SizesDiffer(peer, tag, aside->bytes, bytes);
  operation.moved = aside->data.size();
  if (operation.moved > 0) std::memcpy(buffer, aside->data.data(), operation.moved);
  operation.done = operation.moved == bytes;
  if (!operation.done) {  // then it is the last one, and the rest comes straight here
    from.arriving = Peer::kOperation;
    from.arriving_operation = IndexOf(ticket);
  }
  from.asides.erase(aside);
  return ticket;
}

absl::StatusOr<bool> ShmTransport::TrySend(int peer, uint64_t tag, const void* data, size_t bytes) {
  NIBBLE_RETURN_IF_ERROR(segment_->Health());
  const Peer& to = peers_[static_cast<size_t>(peer)];
  const uint64_t consumed =
      segment_->ring(rank(), peer).state->consumed.load(std::memory_order_seq_cst);
  const size_t room = ring_bytes_ - (to.written - consumed);
  if (!to.sends.empty() || bytes > room || kUnit + RoundUp(bytes) > room) return false;
  NIBBLE_ASSIGN_OR_RETURN(const Ticket ticket, Send(peer, tag, data, bytes));
  NIBBLE_CHECK(operations_[IndexOf(ticket)].done);
  free_.push_back(IndexOf(ticket));
  return true;
}

absl::StatusOr<Ticket> ShmTransport::Begin(const Operation& operation) {
  NIBBLE_CHECK(operation.peer >= 0 && operation.peer < size() && operation.peer != rank());
  NIBBLE_RETURN_IF_ERROR(segment_->Health());
  if (free_.empty()) {
    free_.push_back(static_cast<uint32_t>(operations_.size()));
    operations_.emplace_back();
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  const uint32_t use = operations_[index].use + 1;
  operations_[index] = operation;
  operations_[index].use = use;
  return static_cast<Ticket>(use) << 32 | index;
}

absl::Status ShmTransport::Wait(Ticket ticket, Deadline deadline) {
  const uint32_t index = IndexOf(ticket);
  NIBBLE_CHECK_LT(index, operations_.size());
  NIBBLE_CHECK_EQ(operations_[index].use, static_cast<uint32_t>(ticket >> 32));
  const Operation& operation = operations_[index];
  const auto done = [this, index] {
    if (operations_[index].done) return true;
    Progress();
    return operations_[index].done;
  };
  NIBBLE_RETURN_IF_ERROR(
      segment_->WaitUntil(done, {.peer = operation.peer,
                                 .deadline = deadline,
                                 .verb = operation.sends ? "take a message" : "send a message"}));
  free_.push_back(index);
  return absl::OkStatus();
}

void ShmTransport::Progress() {
  // Buffers are the caller's again once an error was returned.
  if (segment_->broken()) return;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    Write(peer);
    if (!Read(peer).ok()) return;  // it broke the segment, which every call tells
  }
}

void ShmTransport::Write(int peer_rank) {
  Peer& peer = peers_[static_cast<size_t>(peer_rank)];
  if (peer.sends.empty()) return;
  shm::RingState& ring = *segment_->ring(rank(), peer_rank).state;
  while (!peer.sends.empty()) {
    Operation& operation = operations_[peer.sends.front()];
    size_t room = ring_bytes_ - (peer.written - ring.consumed.load(std::memory_order_seq_cst));
    if (room == 0) return;
    if (!peer.header_written) {
      const MessageHeader header{.tag = operation.tag, .bytes = operation.bytes};
      CopyIntoRing(peer_rank, peer.written, &header, kUnit);
      peer.header_written = true;
      peer.written += kUnit;
      room -= kUnit;
    }
    const size_t length =
        std::min({operation.bytes - operation.moved, room, ring_bytes_ / kPartsPerRing});
    CopyIntoRing(peer_rank, peer.written, operation.data + operation.moved, length);
    operation.moved += length;
    peer.written += RoundUp(length);
    ring.written.store(peer.written, std::memory_order_seq_cst);
    segment_->Wake(peer_rank);
    if (operation.moved < operation.bytes) continue;
    operation.done = true;
    peer.header_written = false;
    peer.sends.pop_front();
  }
}

absl::Status ShmTransport::Read(int peer_rank) {
  Peer& peer = peers_[static_cast<size_t>(peer_rank)];
  shm::RingState& ring = *segment_->ring(peer_rank, rank()).state;
  for (;;) {
    uint64_t there = ring.written.load(std::memory_order_seq_cst) - peer.consumed;
    if (there == 0) return absl::OkStatus();
    if (peer.arriving == Peer::kNothing) {
      MessageHeader header;
      CopyFromRing(peer_rank, peer.consumed, &header, kUnit);
      NIBBLE_RETURN_IF_ERROR(Accept(peer_rank, header.tag, header.bytes));
      peer.consumed += kUnit;
      there -= kUnit;
    }
    const size_t length =
        std::min({ArrivingLeft(peer), static_cast<size_t>(there), ring_bytes_ / kPartsPerRing});
    NIBBLE_RETURN_IF_ERROR(Take(peer_rank, length));
    peer.consumed += RoundUp(length);
    ring.consumed.store(peer.consumed, std::memory_order_seq_cst);
    segment_->Wake(peer_rank);
    EndIfWhole(&peer);
  }
}

absl::Status ShmTransport::Accept(int peer_rank, uint64_t tag, uint64_t bytes) {
  Peer& peer = peers_[static_cast<size_t>(peer_rank)];
  const auto receive = std::find_if(peer.receives.begin(), peer.receives.end(),
                                    [&](uint32_t index) { return operations_[index].tag == tag; });
  if (receive == peer.receives.end()) {
    if (bytes > kMaxMessageBytes) return SizesDiffer(peer_rank, tag, bytes, kMaxMessageBytes);
    peer.asides.push_back({.tag = tag, .bytes = bytes});
    peer.arriving = Peer::kAside;
    return absl::OkStatus();
  }
  const uint64_t expected = operations_[*receive].bytes;
  if (expected != bytes) return SizesDiffer(peer_rank, tag, bytes, expected);
  peer.arriving = Peer::kOperation;
  peer.arriving_operation = *receive;
  peer.receives.erase(receive);
  return absl::OkStatus();
}

size_t ShmTransport::ArrivingLeft(const Peer& peer) const {
  if (peer.arriving == Peer::kAside)
    return peer.asides.back().bytes - peer.asides.back().data.size();
  const Operation& operation = operations_[peer.arriving_operation];
  return operation.bytes - operation.moved;
}

absl::Status ShmTransport::Take(int peer_rank, size_t length) {
  Peer& peer = peers_[static_cast<size_t>(peer_rank)];
  if (peer.arriving == Peer::kOperation) {
    Operation& operation = operations_[peer.arriving_operation];
    CopyFromRing(peer_rank, peer.consumed, operation.data + operation.moved, length);
    operation.moved += length;
    return absl::OkStatus();
  }
  // Grows with what has come, whatever size the header names.
  std::vector<std::byte>& data = peer.asides.back().data;
  const size_t had = data.size();
  try {
    data.resize(had + length);
  } catch (const std::bad_alloc&) {
    return segment_->Fail(absl::StatusCode::kResourceExhausted,
                          fmt::format("no memory for {} bytes from {} that nobody asked for yet",
                                      had + length, segment_->NameOf(peer_rank)));
  }
  CopyFromRing(peer_rank, peer.consumed, data.data() + had, length);
  return absl::OkStatus();
}

void ShmTransport::EndIfWhole(Peer* peer) {
  if (ArrivingLeft(*peer) != 0) return;
  if (peer->arriving == Peer::kOperation) operations_[peer->arriving_operation].done = true;
  peer->arriving = Peer::kNothing;
}

absl::Status ShmTransport::SizesDiffer(int peer_rank, uint64_t tag, uint64_t sent,
                                       uint64_t expected) {
  return segment_->Fail(
      absl::StatusCode::kDataLoss,
      fmt::format("{} sent {} bytes with tag {}, rank {} expects {}", segment_->NameOf(peer_rank),
                  sent, tag, segment_->place().name_of(rank()), expected));
}

void ShmTransport::CopyIntoRing(int peer_rank, uint64_t at, const void* from, size_t length) {
  std::byte* const ring = segment_->ring(rank(), peer_rank).data;
  const size_t begin = at % ring_bytes_;
  const size_t first = std::min(length, ring_bytes_ - begin);
  if (first > 0) std::memcpy(ring + begin, from, first);
  if (length > first) {
    std::memcpy(ring, static_cast<const std::byte*>(from) + first, length - first);
  }
}

void ShmTransport::CopyFromRing(int peer_rank, uint64_t at, void* to, size_t length) {
  const std::byte* const ring = segment_->ring(peer_rank, rank()).data;
  const size_t begin = at % ring_bytes_;
  const size_t first = std::min(length, ring_bytes_ - begin);
  if (first > 0) std::memcpy(to, ring + begin, first);
  if (length > first) std::memcpy(static_cast<std::byte*>(to) + first, ring, length - first);
}

}  // namespace nibble::comm
