// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Messages between the ranks of one host: a ring of bytes for each pair and direction. A message
// is written into the ring as room comes free and read out of it as it arrives, so it may be larger
// than the ring. Read straight into the posted buffer; a message without one is kept aside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "comm/shm/segment.h"
#include "comm/transport.h"

namespace nibble::comm {

class ShmTransport : public Transport {
 public:
  // `segment` is connected and outlives this; one ShmTransport for a segment. REQUIRES that no
  // ticket is under way when it is destroyed, unless the segment is broken.
  explicit ShmTransport(ShmSegment* segment);
  ~ShmTransport() override;

  int rank() const override { return segment_->rank(); }
  int size() const override { return segment_->size(); }
  std::string name() const override { return "shm"; }

  absl::StatusOr<Ticket> Send(int peer, uint64_t tag, const void* data, size_t bytes) override;
  absl::StatusOr<Ticket> Receive(int peer, uint64_t tag, void* buffer, size_t bytes) override;
  absl::Status Wait(Ticket ticket, Deadline deadline) override;
  void Progress() override;
  void Abort(const std::string& reason) override { segment_->Abort(reason); }

 private:
  struct Outgoing;
  struct Incoming;
  struct Peer;

  ShmSegment* const segment_;
  std::vector<std::unique_ptr<Peer>> peers_;  // [size]; null for this rank
  Ticket next_ticket_ = 1;
  std::unordered_map<Ticket, int> under_way_;  // the peer of each
  absl::Status status_;
};

}  // namespace nibble::comm
