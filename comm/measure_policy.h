// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The policy of `--all-reduce auto`: the group runs the candidates and takes what was fastest
// (choose_policy.h says which sizes and which candidates).
#pragma once

#include <chrono>
#include <cstdint>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/all_reduce.h"
#include "comm/group_communicator.h"

namespace nibble::comm {

struct MeasureOptions {
  CodecDesc codec;       // group size and options of the candidates
  int64_t row_size = 0;  // of the messages; 0: not known
  // Rank 0 begins no size that it expects to end later.
  std::chrono::nanoseconds budget{std::chrono::seconds(4)};
  // Of messages as bf16, doubled each time; it begins lower where a single row is smaller.
  int64_t min_bytes = int64_t{8} << 10;  // at least 1 KiB
  int64_t max_bytes = int64_t{64} << 20;
};

// By all ranks together: all run the same all-reduces, rank 0 times them, decides and tells the
// others, and logs what it took.
absl::StatusOr<AllReducePolicy> MeasurePolicy(const MeasureOptions& options,
                                              GroupCommunicator* communicator, ThreadPool* pool);

}  // namespace nibble::comm
