// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which algorithm and codec a message takes: by rule, or measured by the group together.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "comm/all_reduce.h"
#include "comm/group_communicator.h"

namespace nibble::comm {

// One codec for every size, of ranks that share memory.
AllReducePolicy HostPolicy(const CodecDesc& codec, int num_ranks);
// The same of ranks (of hosts, when they have several) that a network connects.
AllReducePolicy NetworkPolicy(const CodecDesc& codec, int num_ranks);

// What `options` say when nothing was measured; kAuto is taken as kNone.
AllReducePolicy UnmeasuredPolicy(const AllReduceOptions& options, int num_hosts, int num_ranks);

struct MeasureOptions {
  CodecDesc codec;       // group size and options of the candidates
  int64_t row_size = 0;  // of the messages; 0: not known
  int num_hosts = 2;
  // Rank 0 begins no size that it expects to end later.
  std::chrono::nanoseconds budget{std::chrono::seconds(2)};
  int64_t min_bytes = int64_t{8} << 10;  // of messages as bf16, doubled each time
  int64_t max_bytes = int64_t{64} << 20;
};

// What was measured for one size: seconds of each candidate, in ChoosePolicy's `candidates` order;
// infinite when it was not tried.
struct SizeTimes {
  int64_t message_bytes = 0;
  std::vector<double> seconds;
};

// bf16, int8, int6, int5 and int4, each one-shot and two-shot; wider codecs first.
std::vector<AllReduceChoice> MeasuredCandidates(const CodecDesc& codec);
// The widest codec that is nearly as fast as the fastest candidate at a size and its neighbours,
// and the one of the size before where it is: noise flips no choice, and bits are given up for
// speed alone. Between two sizes the nearer one's choice holds. Pure. REQUIRES a size at which
// something was tried.
AllReducePolicy ChoosePolicy(const std::vector<AllReduceChoice>& candidates,
                             const std::vector<SizeTimes>& sizes);

// By all ranks together: all run the same all-reduces, rank 0 times them, decides and tells the
// others, and logs the outcome.
absl::StatusOr<AllReducePolicy> MeasurePolicy(const MeasureOptions& options,
                                              GroupCommunicator* communicator, ThreadPool* pool);

}  // namespace nibble::comm
