// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which CPUs the ranks of a host compute on.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "server/config.h"

namespace nibble::cli {

struct RankPlacement {
  int threads = 1;
  std::vector<int> cpus;  // one for each thread, or empty: the system chooses
};

struct HostPlacement {
  std::vector<RankPlacement> ranks;
  std::string warning;  // empty: nothing to say
};

// What this process may use: CPUs of its affinity mask, and how many of them at a time.
struct HostCpus {
  std::vector<int> cpus;
  int num_threads = 1;

  static HostCpus OfThisProcess();
};

// Each of `num_ranks` ranks has CPUs of its own, in the order of the CPU list. With --rank-threads
// or a quota that leave CPUs over, `auto` binds nothing: which ones others use is not known.
// INVALID_ARGUMENT for a --cpu-binding that does not divide, naming the counts. REQUIRES options
// that Validate accepts.
absl::StatusOr<HostPlacement> PlaceRanks(const server::ModelOptions& model, int rank_threads,
                                         int num_ranks, const HostCpus& host);

}  // namespace nibble::cli
