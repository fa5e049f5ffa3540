// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Messages between the ranks of one host: a ring of bytes for each pair and direction. A message
// goes into the ring as room comes free and out of it as it arrives, so it may be larger than the
// ring; straight into the posted buffer, or aside when there is none yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "comm/shm/segment.h"
#include "comm/transport.h"

namespace nibble::comm {

class ShmTransport : public Transport {
 public:
  // `segment` is connected and outlives this; one ShmTransport for a segment. REQUIRES that no
  // ticket is under way when it is destroyed, unless the segment is broken.
  explicit ShmTransport(ShmSegment* segment);

  int rank() const override { return segment_->rank(); }
  int size() const override { return segment_->size(); }
  std::string name() const override { return "shm"; }

  absl::StatusOr<Ticket> Send(int peer, uint64_t tag, const void* data, size_t bytes) override;
  absl::StatusOr<Ticket> Receive(int peer, uint64_t tag, void* buffer, size_t bytes) override;
  absl::StatusOr<bool> TrySend(int peer, uint64_t tag, const void* data, size_t bytes) override;
  absl::Status Wait(Ticket ticket, Deadline deadline) override;
  void Progress() override;
  void Abort(const std::string& reason) override { segment_->Abort(reason); }

 private:
  // One ticket: index_of(ticket) in operations_.
  struct Operation {
    int peer = 0;
    bool sends = false;
    bool done = false;
    uint32_t use = 0;  // counts the tickets that had this place
    uint64_t tag = 0;
    std::byte* data = nullptr;  // [bytes]; only read when it sends
    size_t bytes = 0;
    size_t moved = 0;
  };
  // A message that came before its Receive: what has arrived of it.
  struct Aside {
    uint64_t tag = 0;
    size_t bytes = 0;
    std::vector<std::byte> data;
  };
  struct Peer {
    std::deque<uint32_t> sends;     // operations, in order; the first is being written
    bool header_written = false;    // of the first
    std::deque<uint32_t> receives;  // operations without a message yet, in order
    std::deque<Aside> asides;       // in order of arrival
    enum { kNothing, kOperation, kAside } arriving = kNothing;  // kAside: the last one
    uint32_t arriving_operation = 0;
    uint64_t written = 0;   // into the ring to it
    uint64_t consumed = 0;  // out of the ring from it
  };

  absl::StatusOr<Ticket> Begin(const Operation& operation);
  static uint32_t IndexOf(Ticket ticket) { return static_cast<uint32_t>(ticket); }

  void Write(int peer_rank);
  absl::Status Read(int peer_rank);
  // The message of this header: to whom it goes.
  absl::Status Accept(int peer_rank, uint64_t tag, uint64_t bytes);
  // `length` bytes of what is arriving, from the ring.
  absl::Status Take(int peer_rank, size_t length);
  size_t ArrivingLeft(const Peer& peer) const;
  void EndIfWhole(Peer* peer);
  absl::Status SizesDiffer(int peer_rank, uint64_t tag, uint64_t sent, uint64_t expected);
  void CopyIntoRing(int peer_rank, uint64_t at, const void* from, size_t length);
  void CopyFromRing(int peer_rank, uint64_t at, void* to, size_t length);

  ShmSegment* const segment_;
  const size_t ring_bytes_;
  std::vector<Peer> peers_;  // [size]; the own one stays empty
  std::vector<Operation> operations_;
  std::vector<uint32_t> free_;  // places in operations_
};

}  // namespace nibble::comm
