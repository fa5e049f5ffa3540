// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Starting the process of a rank, and what became of it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/status.h"

namespace nibble::comm {

struct RankProcess {
  pid_t pid = 0;
  int socket = -1;  // this process's end of the pair: non-blocking, closed on exec, the caller's
};

// Runs argv[0] with a connected socket as descriptor kRankControlFd, no other descriptor but 0, 1
// and 2, and default signals (local_ranks.h). The kernel kills it when the calling *thread* ends.
// RESOURCE_EXHAUSTED when the system has no descriptor or process left.
absl::StatusOr<RankProcess> StartRankProcess(const std::vector<std::string>& argv);

// Of a status that waitpid gave: "exited with status 3", "killed by signal 9 (SIGKILL)".
std::string DescribeEnd(int wait_status);

}  // namespace nibble::comm
