// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/allreduce_bench.h"

#include <algorithm>

#include "nlohmann/json.hpp"

#include "bench/allreduce_cases.h"
#include "bench/allreduce_ranks.h"
#include "bench/limits.h"

namespace nibble::bench {

void AllReduceBenchOptions::Validate(std::vector<std::string>* violations) const {
  CheckLimits("--ranks", {ranks}, 2, 64, violations);
  CheckLimits("--sizes", sizes, 2, int64_t{1} << 30, violations);
  CheckLimits("--row-size", {row_size}, 1, 1 << 20, violations);
  CheckLimits("--threads", {threads}, 0, 1024, violations);
  CheckNumber("--seconds", seconds, 0.0, 3600.0, violations);
  if (transport != "shm" && transport != "tcp" && transport != "threads") {
    violations->push_back(fmt::format("--transport {}: shm, tcp or threads", transport));
  }
  CheckLimits("--hosts", {hosts}, 0, ranks, violations);
  if (hosts > 0 && transport != "tcp") violations->push_back("--hosts needs --transport tcp");
  for (const std::string& name : codecs) {
    absl::StatusOr<comm::AllReduceOptions> all_reduce = comm::ParseAllReduce(name);
    if (!all_reduce.ok()) {
      violations->push_back(std::string(all_reduce.status().message()));
      continue;
    }
    comm::CodecDesc codec = all_reduce->codec;
    if (!codec.is_integer()) continue;
    codec.group_size = static_cast<int>(std::clamp<int64_t>(group_size, 0, 1 << 20));
    codec.spikes = spikes;
    codec.rotation = rotation;
    const absl::Status status = comm::Validate(codec);
    if (!status.ok()) violations->push_back(std::string(status.message()));
  }
  if ((rank < 0) != rendezvous.empty()) {
    violations->push_back("--rank and --rendezvous go together");
  }
  CheckLimits("--rank", {rank}, -1, ranks - 1, violations);
  if (rank >= 0 && transport == "threads") {
    violations->push_back("--rank starts one of several processes, --transport threads has one");
  }
}

absl::StatusOr<nlohmann::ordered_json> RunAllReduceBench(const AllReduceBenchOptions& options,
                                                         std::FILE* table) {
  return RunOnRanks(options, [&](comm::GroupCommunicator* communicator, ThreadPool* pool) {
    return RunAllReduceCases(options, communicator, pool, table);
  });
}

}  // namespace nibble::bench
