// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What every rank of an all-reduce benchmark does once the group stands.
#pragma once

#include <cstdio>

#include "nlohmann/json_fwd.hpp"

#include "base/status.h"
#include "base/thread_pool.h"
#include "bench/allreduce_bench.h"
#include "comm/group_communicator.h"

namespace nibble::bench {

// By all ranks together; rank 0's result has the figures, the others' is null.
absl::StatusOr<nlohmann::ordered_json> RunAllReduceCases(const AllReduceBenchOptions& options,
                                                         comm::GroupCommunicator* communicator,
                                                         ThreadPool* pool, std::FILE* table);

}  // namespace nibble::bench
