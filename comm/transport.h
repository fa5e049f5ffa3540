// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Moves bytes between the ranks of one group. The collectives of this folder are written against
// it; shm/ carries them through shared memory, tcp/ over a network, tests through plain memory.
//
//   // every rank, in the same order:
//   NIBBLE_ASSIGN_OR_RETURN(const Ticket in, transport->Receive(peer, tag, buffer, bytes));
//   NIBBLE_ASSIGN_OR_RETURN(const Ticket out, transport->Send(peer, tag, data, bytes));
//   NIBBLE_RETURN_IF_ERROR(transport->Wait(in, deadline));
//   NIBBLE_RETURN_IF_ERROR(transport->Wait(out, deadline));
//
// A message meets the Receive of the same peer and tag; both name the same size (a peer that sends
// another one is DATA_LOSS, naming both). Messages of one pair with one tag arrive in order. Many
// may be under way at a time, in any order of Send and Receive; a Receive that is posted before
// its message comes costs no copy where the transport can do so.
//
// One thread calls Send, Receive, Wait and Progress; Abort may come from any thread at any time.
// After an error the transport is broken: every later call returns that error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "comm/deadline.h"

namespace nibble::comm {

// One Send or Receive under way; waited for exactly once.
using Ticket = uint64_t;

class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;  // 0..size() - 1
  virtual int size() const = 0;
  virtual std::string name() const = 0;  // "shm", "tcp": for logs and benchmarks

  // Begin. `data` and `buffer` stay the caller's and untouched until the ticket was waited for.
  // REQUIRES peer in 0..size() - 1 and not rank(). Zero bytes are a message too.
  virtual absl::StatusOr<Ticket> Send(int peer, uint64_t tag, const void* data, size_t bytes) = 0;
  virtual absl::StatusOr<Ticket> Receive(int peer, uint64_t tag, void* buffer, size_t bytes) = 0;

  // Sends now if that needs no waiting and no ticket, and says whether it did.
  virtual absl::StatusOr<bool> TrySend(int /*peer*/, uint64_t /*tag*/, const void* /*data*/,
                                       size_t /*bytes*/) {
    return false;
  }

  // Ends when it is done: a Send when `data` is the caller's again (over a network its last bytes
  // may leave with a later call: tcp/tcp_transport.h). DEADLINE_EXCEEDED naming the peer and the
  // wait's length; UNAVAILABLE naming the peer when it is gone; ABORTED with Abort()'s reason.
  virtual absl::Status Wait(Ticket ticket, Deadline deadline) = 0;
  // Moves along what is under way, for callers that compute between two waits. Never blocks.
  virtual void Progress() = 0;

  // Ends all waits of this rank, now and later, with ABORTED and this reason. The next call of the
  // thread that uses the transport breaks it, as any error does: peers see that this rank is gone.
  virtual void Abort(const std::string& reason) = 0;
};

}  // namespace nibble::comm
