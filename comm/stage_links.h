// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Forming the links between pipeline stages (stage_link.h), in the steps in which a group is formed
// (group.h): every rank prepares and tells its address, all addresses go to all, and every rank
// connects to its neighbours: in shared memory where they are on one host, over the network
// elsewhere. Names in /dev/shm are removed by RemoveLeftovers.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "comm/group.h"
#include "comm/stage_link.h"

namespace nibble::comm {

struct StageLinkOptions {
  std::chrono::milliseconds connect_timeout{30'000};
  // Of one Send or Receive, which wait for other stages' steps.
  std::chrono::milliseconds message_timeout{60'000};
};

// Not thread-safe but for Abort.
class StageLinkMember {
 public:
  virtual ~StageLinkMember() = default;
  // `place`: among the ranks of all stages, stage 0's first. INVALID_ARGUMENT for a place that
  // makes no sense, UNAVAILABLE when the address cannot be bound. REQUIRES that num_stages divides
  // the ranks.
  static absl::StatusOr<std::unique_ptr<StageLinkMember>> Prepare(const GroupPlace& place,
                                                                  int num_stages);

  // Opaque bytes for the other ranks, at most kMaxGroupAddressBytes.
  virtual const std::string& address() const = 0;
  // `addresses` of all ranks; INVALID_ARGUMENT for what is none of a neighbour. The member is used
  // up.
  virtual absl::StatusOr<std::unique_ptr<StageLink>> Connect(std::span<const std::string> addresses,
                                                             const StageLinkOptions& options) = 0;
  // Ends a Connect that waits. From any thread.
  virtual void Abort(const std::string& reason) = 0;
};

}  // namespace nibble::comm
