// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The collectives of one rank in its group. Every rank calls the same ones in the same order with
// the same shapes; results are bit-identical on all ranks, and a row's result does not depend on
// the rows beside it as long as the policy gives both messages the same codec.
//
//   NIBBLE_RETURN_IF_ERROR(communicator->AllReduce({.data = delta, .num_rows = m, .row_size =
//   hidden}, pool));
//
// Every wait ends at the group's timeout. After an error the communicator is broken: all later
// calls return an error at once, peers run into theirs (UNAVAILABLE, ABORTED or DEADLINE_EXCEEDED),
// and the group has to be formed anew. One thread calls; Abort may come from any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/all_reduce.h"

namespace nibble::comm {

struct AllReduceArgs {
  float* data = nullptr;  // [num_rows, row_size], contiguous; in place
  int64_t num_rows = 0;
  int64_t row_size = 0;
  bool exact = false;  // whatever the policy says: sums that must not be rounded
  // With `exact`: all values and sums are bf16 values, which take half the bytes between hosts.
  bool is_bf16 = false;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const AllReducePolicy& policy() const = 0;

  // Sums over the ranks, in rank order in float32. `pool` codes and sums.
  virtual absl::Status AllReduce(const AllReduceArgs& args, ThreadPool* pool) = 0;
  // recv [size() * bytes] gets every rank's `send` [bytes] in rank order, on all ranks.
  virtual absl::Status AllGather(const void* send, size_t bytes, void* recv) = 0;
  // The same on `root` only, where rank r's part has bytes_of_rank[r] bytes; elsewhere recv is not
  // touched and may be null. REQUIRES the same bytes_of_rank [size()] on all ranks.
  virtual absl::Status Gather(const void* send, const size_t* bytes_of_rank, void* recv,
                              int root) = 0;
  virtual absl::Status Broadcast(void* data, size_t bytes, int root) = 0;
  virtual absl::Status Barrier() = 0;

  virtual void Abort(const std::string& reason) = 0;
};

}  // namespace nibble::comm
