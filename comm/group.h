// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Forming a group: every rank prepares and tells its address, whoever drives the ranks hands all
// addresses to all, and every rank connects. Ranks of one host meet in shared memory, ranks of
// different hosts over the network; with several ranks on several hosts an all-reduce goes through
// both (README.md).
//
//   NIBBLE_ASSIGN_OR_RETURN(auto member, GroupMember::Prepare(place));
//   ... tell member->address(), get everybody's ...
//   NIBBLE_ASSIGN_OR_RETURN(auto communicator, std::move(*member).Connect(addresses, options));
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/all_reduce.h"
#include "comm/communicator.h"

namespace nibble::comm {

// A rank's place in a group that is to be formed.
struct GroupPlace {
  int rank = 0;
  std::vector<int> node_of_rank;  // [size], rising: which host each rank is on
  std::string group_id;           // the same for all generations; letters, digits, '-'
  uint64_t generation = 0;        // counts the times this group was formed
  std::string bind_address;  // of this host, for the network; not used when all are on one host
  // Of a group that is a part of a larger one: its name there (as group_id), and the number there
  // of this group's rank 0. Errors speak of those numbers.
  std::string part;
  int first_rank = 0;

  int size() const { return static_cast<int>(node_of_rank.size()); }
};

// INVALID_ARGUMENT naming field, value and limit.
absl::Status CheckPlace(const GroupPlace& place);
// The group of the ranks of place.rank's stage, of `num_stages` that have as many ranks each.
// REQUIRES a checked place whose size num_stages divides.
GroupPlace StageOf(const GroupPlace& place, int num_stages);

struct ConnectOptions {
  AllReduceOptions all_reduce;
  // Not empty: what an earlier generation chose (only kAuto looks at it, and it is not logged
  // again). Empty with kAuto: measured now, together.
  AllReducePolicy policy;
  int64_t row_size =
      0;  // of the messages that will come (the model's hidden size): what is measured
  std::chrono::milliseconds connect_timeout{30'000};
  std::chrono::milliseconds operation_timeout{60'000};  // of one collective
};

// Not thread-safe but for Abort.
class GroupMember {
 public:
  virtual ~GroupMember() = default;
  // INVALID_ARGUMENT for a place that makes no sense, UNAVAILABLE when the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<GroupMember>> Prepare(const GroupPlace& place);

  // Opaque bytes for the other ranks.
  virtual const std::string& address() const = 0;
  // `addresses` [size], by rank; they may come from a peer: INVALID_ARGUMENT for what is none. The
  // member is used up. `pool` is used while measuring.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Connect(
      std::span<const std::string> addresses, const ConnectOptions& options, ThreadPool* pool) = 0;
  // Ends a Connect that waits. From any thread.
  virtual void Abort(const std::string& reason) = 0;
};

// Names in /dev/shm that this group, its parts and its links may have left behind when a rank died
// before all had attached: whoever drives the ranks of this host calls it after a generation
// failed.
void RemoveLeftovers(const std::string& group_id, uint64_t generation);

// A group of `size` ranks that are threads of this process, over private memory: for tests,
// evaluation and benchmarks. policy: of `options`, measured by nobody (kAuto is taken as kNone).
absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeThreadGroup(
    int size, const AllReduceOptions& options);

}  // namespace nibble::comm
