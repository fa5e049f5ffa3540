// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One end of one connection between two pipeline stages, while it is formed.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "base/status.h"
#include "comm/deadline.h"
#include "comm/group.h"
#include "comm/link_sender.h"
#include "comm/tcp/tcp_transport.h"

namespace nibble::comm {

class LinkEnd {
 public:
  // Of the connection from world rank `sender` to `receiver`, one of which is place.rank.
  static absl::StatusOr<std::unique_ptr<LinkEnd>> Prepare(const GroupPlace& place, int sender,
                                                          int receiver);

  // For the other end.
  const std::string& address() const { return address_; }
  int peer() const { return is_sender() ? receiver_ : sender_; }
  bool is_sender() const { return place_.rank == sender_; }

  // Once. `address`: the other end's.
  absl::StatusOr<LinkConnection> Connect(const std::string& address, Deadline deadline);
  // From any thread.
  void Abort(const std::string& reason);

 private:
  LinkEnd(const GroupPlace& place, int sender, int receiver);
  absl::Status Open();

  const GroupPlace place_;
  const int sender_;
  const int receiver_;
  const std::string part_;  // of names
  std::string address_;

  // Connect alone changes what follows, under the mutex, which guards it against Abort.
  std::mutex mutex_;
  std::unique_ptr<ShmSegment> segment_;      // null between hosts
  std::unique_ptr<TcpTransport> transport_;  // null on one host
};

}  // namespace nibble::comm
