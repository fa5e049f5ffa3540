// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Memory that the ranks of one host share, and how one rank waits for another in it. The
// collectives (collectives.h) and the transport (shm_transport.h) live in it, both at once if need
// be.
//
//   NIBBLE_ASSIGN_OR_RETURN(auto segment, ShmSegment::Prepare(place));
//   NIBBLE_RETURN_IF_ERROR(segment->Connect(deadline));  // returns when all ranks are there
//   ShmCollectives collectives(segment.get(), isa);
//
// Rank 0 of the host makes the segment under a name of group, generation and node, which must not
// exist; the others attach to it; once all have, the name is gone, and the memory goes with the
// last process. Ranks that are threads share private memory without a name.
//
// One thread uses a rank's segment, its collectives and its transport; Abort may come from any.
// The first error breaks the segment for all ranks: whoever finds a peer gone or late says so in
// the segment, and every rank leaves with that error. Processes must see each other's pids (one pid
// namespace).
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "comm/deadline.h"
#include "comm/shm/peer_process.h"
#include "comm/shm/segment_layout.h"

namespace nibble::comm {

struct SegmentPlace {
  int rank = 0;       // among the ranks of this host, 0..num_ranks - 1
  int num_ranks = 1;  // of this host, at most shm::kMaxRanks
  // What the whole group calls this host's rank 0, and how far apart the following ones are: errors
  // speak so.
  int first_rank = 0;
  int rank_stride = 1;
  int node = 0;          // >= 0
  std::string group_id;  // 1..64 letters, digits, '-'
  uint64_t generation = 0;
  std::string part;            // of several segments of one group: a part of the name, as group_id
  bool messages_only = false;  // no slots: for a transport, without collectives

  int name_of(int rank_here) const { return first_rank + rank_here * rank_stride; }
};

// INVALID_ARGUMENT unless it can be a part of a segment's name.
absl::Status CheckGroupId(std::string_view id);

class ShmSegment {
 public:
  // Whom a wait is for, until when, and what is said when it does not come: "rank 3 (pid 17) did
  // not `verb` within 60000 ms".
  struct WaitFor {
    int peer = 0;
    Deadline deadline;
    const char* verb = "";
  };

  // INVALID_ARGUMENT naming value and limit.
  static absl::StatusOr<std::unique_ptr<ShmSegment>> Prepare(const SegmentPlace& place);
  // The segments of `num_ranks` ranks that are threads of this process, connected.
  // `first_round`: where the counters begin.
  static absl::StatusOr<std::vector<std::unique_ptr<ShmSegment>>> MakeForThreads(
      int num_ranks, uint64_t first_round = 0);
  // Of `place`, whose rank is not read.
  static absl::StatusOr<std::vector<std::unique_ptr<ShmSegment>>> MakeForThreads(
      SegmentPlace place, uint64_t first_round = 0);

  // Tells the peers that this rank has left.
  ~ShmSegment();
  ShmSegment(const ShmSegment&) = delete;
  ShmSegment& operator=(const ShmSegment&) = delete;

  // RESOURCE_EXHAUSTED naming the bytes needed and free; ALREADY_EXISTS for a name or a seat that
  // is taken; FAILED_PRECONDITION for a segment of another layout, size or generation;
  // DEADLINE_EXCEEDED, UNAVAILABLE naming the rank; ABORTED. Nothing keeps its name after an error
  // of the rank that made it.
  absl::Status Connect(Deadline deadline);

  int rank() const { return place_.rank; }
  int size() const { return place_.num_ranks; }
  const SegmentPlace& place() const { return place_; }
  // "/nibble.<group>.<generation>.<part.><node>"
  const std::string& name() const { return name_; }

  // From any thread, at any time: ends what this rank waits for, now and later, with this reason,
  // and tells the peers.
  void Abort(const std::string& reason);
  // OK until the segment is broken, by whomever. REQUIRES a connected segment.
  absl::Status Health();

  // What follows is for the users in this folder. REQUIRES a connected segment.

  shm::Progress& progress(int rank) { return map_->progress(rank); }
  std::byte* slot(int rank, uint64_t round) { return map_->slot(rank, round); }
  shm::Ring ring(int from, int to) { return map_->ring(from, to); }
  size_t ring_bytes() const { return map_->layout().ring_bytes; }
  shm::Layout layout() const { return shm::Layout::For(size(), place_.messages_only); }

  bool broken();
  // Returns once done() is true: spins, then sleeps until a peer calls Wake for this rank. done()
  // reads what peers store with memory_order_seq_cst, and they Wake after storing (README.md has
  // the argument why none is missed).
  template <typename Done>
  absl::Status WaitUntil(const Done& done, const WaitFor& wait) {
    if (done()) return absl::OkStatus();
    return WaitSlowly(
        &done, [](const void* f) { return (*static_cast<const Done*>(f))(); }, wait);
  }
  void Wake(int peer) {
    if (map_->doorbell(peer).sleeping.load(std::memory_order_seq_cst) != 0) Rouse(peer);
  }
  void WakeAll();
  // Breaks the segment for all ranks and returns the status that all get; the first one wins.
  absl::Status Fail(absl::StatusCode code, const std::string& message);
  // "rank 3 (pid 17)"
  std::string NameOf(int peer) const;

 private:
  using DoneFunction = bool (*)(const void* done);

  ShmSegment(const SegmentPlace& place, std::string name);

  absl::Status Create();
  absl::Status Attach(Deadline deadline);
  // NOT_FOUND while the segment is not there or not ready.
  absl::Status TryAttach();
  absl::Status CheckHeader(shm::Header& header) const;
  absl::Status TakeSeat();
  absl::Status WaitForSeats(Deadline deadline);
  void SetMap(std::shared_ptr<shm::Map> map);

  absl::Status WaitSlowly(const void* done, DoneFunction call, const WaitFor& wait);
  bool Spin(const void* done, DoneFunction call);
  // Fails unless all peers' processes run.
  absl::Status CheckPeers();
  void Rouse(int peer);
  absl::Status BrokenStatus();

  const SegmentPlace place_;
  const std::string name_;
  std::chrono::steady_clock::time_point last_peer_check_{};
  std::vector<shm::PeerProcess> peers_;  // [num_ranks]; watched from when they are seen first

  std::mutex mutex_;  // guards the next three against Abort
  std::condition_variable abort_called_;
  std::shared_ptr<shm::Map> map_;  // set once; its user reads it without the mutex
  std::string abort_reason_;
  std::atomic<bool> aborted_{false};
};

// Removes the names of this group and generation that ranks of this host left because one died
// before all had attached. What is mapped stays so.
void RemoveSegmentNames(const std::string& group_id, uint64_t generation);

}  // namespace nibble::comm
