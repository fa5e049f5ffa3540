// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How the ranks of an all-reduce benchmark find each other: forked, as threads, or started by hand.
#pragma once

#include <functional>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/allreduce_bench.h"
#include "comm/group_communicator.h"

namespace nibble::bench {

// What a rank does in the group that stands; rank 0's result counts.
using RankBody =
    std::function<absl::StatusOr<nlohmann::ordered_json>(comm::GroupCommunicator* communicator)>;

// The same with threads: options.threads of each rank, or its part of the host's.
using RankBodyOnPool = std::function<absl::StatusOr<nlohmann::ordered_json>(
    comm::GroupCommunicator* communicator, ThreadPool* pool)>;

// By whichever of the ways below the options say.
absl::StatusOr<nlohmann::ordered_json> RunOnRanks(const AllReduceBenchOptions& options,
                                                  const RankBodyOnPool& body);

// Each runs `body` on all ranks and returns rank 0's result, or the first error.
absl::StatusOr<nlohmann::ordered_json> RunForked(const AllReduceBenchOptions& options,
                                                 const RankBody& body);
absl::StatusOr<nlohmann::ordered_json> RunThreads(const AllReduceBenchOptions& options,
                                                  const RankBody& body);
// This process is rank options.rank.
absl::StatusOr<nlohmann::ordered_json> RunByHand(const AllReduceBenchOptions& options,
                                                 const RankBody& body);

}  // namespace nibble::bench
