// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The collectives of one host's ranks in their shared memory, uncompressed. Every rank calls the
// same ones in the same order with the same sizes (a rank that does not is found out: INTERNAL
// naming it and both calls). Messages of any size; all go through the same fixed slots.
//
//   ShmCollectives collectives(segment, isa);
//   NIBBLE_RETURN_IF_ERROR(
//       collectives.AllReduce(x, count, ShmCollectives::Faster(count, size), pool, deadline));
//
// After an error the segment is broken: all later calls of all ranks return it. One thread calls.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/all_reduce.h"
#include "comm/deadline.h"
#include "comm/shm/segment.h"
#include "comm/shm/sum.h"

namespace nibble::comm {

class ShmCollectives {
 public:
  // `segment` is connected and outlives this; one ShmCollectives for a segment.
  ShmCollectives(ShmSegment* segment, Isa isa);

  int rank() const { return segment_->rank(); }
  int size() const { return segment_->size(); }

  // data[i] = the sum over the ranks in rank order in float32: the same bits on all ranks, by both
  // algorithms. One-shot: every rank sums all; two-shot: every rank sums its stripe. `pool` (may be
  // null) copies and sums large messages.
  absl::Status AllReduce(float* data, int64_t count, Algorithm algorithm, ThreadPool* pool,
                         Deadline deadline);
  // Which is faster for `count` values among `num_ranks`: what was measured (README.md).
  static Algorithm Faster(int64_t count, int num_ranks);

  // As Communicator's of the same names.
  absl::Status AllGather(const void* send, size_t bytes, void* recv, Deadline deadline);
  absl::Status Gather(const void* send, const size_t* bytes_of_rank, void* recv, int root,
                      Deadline deadline);
  absl::Status Broadcast(void* data, size_t bytes, int root, Deadline deadline);
  absl::Status Barrier(Deadline deadline);

 private:
  enum class Kind : uint8_t { kOneShot = 1, kTwoShot, kAllGather, kGather, kBroadcast, kBarrier };

  absl::Status Begin(Kind kind, int root, uint64_t amount, Deadline deadline);
  // One round is: WaitForSlot, fill slot(round), Publish, wait for whom this rank reads, read, and
  // set done_.
  absl::Status WaitForSlot(uint64_t round);
  void Publish(uint64_t round);
  absl::Status WaitReady(int peer, uint64_t round);
  absl::Status WaitAllReady(uint64_t round);
  absl::Status WaitAllReduced(uint64_t round);
  // Fails unless `peer` takes this round to be part of the same call.
  absl::Status CheckCall(int peer, uint64_t round);

  absl::Status OneShot(float* data, int64_t count, ThreadPool* pool);
  absl::Status TwoShot(float* data, int64_t count, ThreadPool* pool);
  // The steps of a two-shot round, for `count` values at `data`.
  struct Chunk;
  void CopyIn(const Chunk& chunk, ThreadPool* pool);
  void ReduceStripe(const Chunk& chunk, ThreadPool* pool);
  void CopyOut(const Chunk& chunk, ThreadPool* pool);

  float* values(int rank, uint64_t round) {
    return reinterpret_cast<float*>(segment_->slot(rank, round));
  }
  std::byte* my_slot(uint64_t round) { return segment_->slot(rank(), round); }

  ShmSegment* const segment_;
  const shm::SumFunction sum_;
  uint64_t round_;  // the last one begun
  uint64_t done_;   // the last one this rank has finished reading
  uint64_t call_ = 0;
  Deadline deadline_;
};

}  // namespace nibble::comm
