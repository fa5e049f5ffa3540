// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How long the all-reduce in shared memory takes, and what copying alone would take. For
// benchmarks; every rank of the segment calls it together.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/shm/collectives.h"

namespace nibble::comm {

struct AllReduceTiming {
  double median_us = 0.0;  // of the time that the slowest rank took
  // The least that a two-shot all-reduce copies, at the speed of memcpy into slots and back: with N
  // ranks and messages of M bytes, each rank moves M (N - 1) / N in, M / N through its sum and
  // M (N - 1) / N out.
  double memcpy_bound_us = 0.0;
  double memcpy_gb_per_s = 0.0;  // of the slowest rank, all copying at once
};

// `repeats` >= 1 after one that is not counted.
absl::StatusOr<AllReduceTiming> TimeAllReduce(ShmCollectives* collectives, int64_t count,
                                              Algorithm algorithm, int repeats, ThreadPool* pool,
                                              Deadline deadline);

}  // namespace nibble::comm
