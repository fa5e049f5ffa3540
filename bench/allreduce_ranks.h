// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How the ranks of an all-reduce benchmark find each other: forked, as threads, or started by hand.
#pragma once

#include <functional>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "bench/allreduce_bench.h"
#include "comm/group_communicator.h"

namespace nibble::bench {

// What a rank does in the group that stands; rank 0's result counts.
using RankBody =
    std::function<absl::StatusOr<nlohmann::ordered_json>(comm::GroupCommunicator* communicator)>;

// Each runs `body` on all ranks and returns rank 0's result, or the first error.
absl::StatusOr<nlohmann::ordered_json> RunForked(const AllReduceBenchOptions& options,
                                                 const RankBody& body);
absl::StatusOr<nlohmann::ordered_json> RunThreads(const AllReduceBenchOptions& options,
                                                  const RankBody& body);
// This process is rank options.rank.
absl::StatusOr<nlohmann::ordered_json> RunByHand(const AllReduceBenchOptions& options,
                                                 const RankBody& body);

}  // namespace nibble::bench
