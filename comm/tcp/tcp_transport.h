// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Messages between ranks of different hosts, over TCP. Two steps, as a group is formed:
//
//   NIBBLE_ASSIGN_OR_RETURN(auto transport, TcpTransport::Open(place));
//   ... tell transport->address(), get everybody's ...
//   NIBBLE_RETURN_IF_ERROR(transport->Connect(addresses,
//   Deadline::After(std::chrono::seconds(30))));
//
// From then on it is a Transport. Its first error (a deadline that passed, a peer that is gone, a
// message of another size, Abort) closes all connections before it is returned: no buffer of a
// ticket under way is touched any more, and the peers see at once that this rank is gone.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "comm/deadline.h"
#include "comm/transport.h"

namespace nibble::comm {

// A rank's place among those that this transport connects.
struct TcpPlace {
  int rank = 0;
  int size = 1;  // 1..1024
  // What errors call rank 0, and how far apart the following ones are.
  int first_rank = 0;
  int rank_stride = 1;
  std::string group_id;     // 1..128 bytes; the same on all ranks
  uint64_t generation = 0;  // the same on all ranks; a rank of another one is refused
  // A rank that may sleep after a Send: when that is done, the message is the kernel's. Else one of
  // up to 64 KiB may wait, behind a full socket, for the rank's next call.
  bool may_sleep = false;
  std::string bind_address;  // numeric IPv4 or IPv6 address of this host: the only one listened on
};

class TcpTransport : public Transport {
 public:
  // Listens. INVALID_ARGUMENT for a place that makes no sense, UNAVAILABLE when the address is none
  // of this host or cannot be bound.
  static absl::StatusOr<std::unique_ptr<TcpTransport>> Open(const TcpPlace& place);

  // Opaque bytes for the other ranks.
  virtual const std::string& address() const = 0;
  // `addresses` [size], by rank. INVALID_ARGUMENT for bytes that are no address,
  // FAILED_PRECONDITION for the address of another group or generation, UNAVAILABLE when a rank
  // cannot be reached, DEADLINE_EXCEEDED naming the ranks that did not answer. Afterwards nobody
  // can connect any more. REQUIRES to be called once, before all but Abort. An error is final.
  virtual absl::Status Connect(std::span<const std::string> addresses, Deadline deadline) = 0;
};

}  // namespace nibble::comm
