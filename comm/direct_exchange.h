// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The small collectives over a transport, by direct exchange: token ids, logits, measurements.
// Every rank of the transport calls the same ones in the same order with the same sizes. `tag`: no
// other message of these ranks has it; its low 32 bits are free.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "comm/deadline.h"
#include "comm/transport.h"

namespace nibble::comm {

struct ExchangeArgs {
  Transport* transport = nullptr;
  uint64_t tag = 0;
  Deadline deadline = Deadline::After({});
};

// Rank r's part is data[offsets[r] .. offsets[r + 1]), filled by it before and by all after.
absl::Status AllGatherInPlace(const ExchangeArgs& args, std::byte* data,
                              const std::vector<size_t>& offsets);
// `send` of every rank to recv[offsets[r]...] on `root`, its own too.
absl::Status GatherTo(const ExchangeArgs& args, const void* send, std::byte* recv,
                      const std::vector<size_t>& offsets, int root);
absl::Status BroadcastFrom(const ExchangeArgs& args, void* data, size_t bytes, int root);
absl::Status WaitForAll(const ExchangeArgs& args);

// The view of some ranks of a transport: rank i is ranks[i] of `transport`, which outlives it and
// whose own rank is among them.
class SubsetTransport : public Transport {
 public:
  SubsetTransport(Transport* transport, std::vector<int> ranks);

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(ranks_.size()); }
  std::string name() const override { return transport_->name(); }
  absl::StatusOr<Ticket> Send(int peer, uint64_t tag, const void* data, size_t bytes) override {
    return transport_->Send(ranks_[static_cast<size_t>(peer)], tag, data, bytes);
  }
  absl::StatusOr<Ticket> Receive(int peer, uint64_t tag, void* buffer, size_t bytes) override {
    return transport_->Receive(ranks_[static_cast<size_t>(peer)], tag, buffer, bytes);
  }
  absl::Status Wait(Ticket ticket, Deadline deadline) override {
    return transport_->Wait(ticket, deadline);
  }
  void Progress() override { transport_->Progress(); }
  void Abort(const std::string& reason) override { transport_->Abort(reason); }

 private:
  Transport* const transport_;
  const std::vector<int> ranks_;
  int rank_ = 0;
};

}  // namespace nibble::comm
