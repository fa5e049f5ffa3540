// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/rank_placement.h"

#include <sched.h>

#include <algorithm>

#include "base/cpu_list.h"
#include "base/thread_pool.h"
#include "server/cli/model_setup.h"

namespace nibble::cli {
namespace {

// Rank r gets cpus[r * threads ... r * threads + threads - 1].
std::vector<RankPlacement> Deal(const std::vector<int>& cpus, int num_ranks, int threads) {
  std::vector<RankPlacement> ranks;
  for (int rank = 0; rank < num_ranks; ++rank) {
    RankPlacement& placement = ranks.emplace_back(RankPlacement{.threads = threads, .cpus = {}});
    if (!cpus.empty()) {
      const auto first = cpus.begin() + rank * threads;
      placement.cpus.assign(first, first + threads);
    }
  }
  return ranks;
}

}  // namespace

HostCpus HostCpus::OfThisProcess() {
  HostCpus host{.cpus = {}, .num_threads = ThreadPool::HostThreads()};
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return host;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) host.cpus.push_back(cpu);
  }
  return host;
}

absl::StatusOr<HostPlacement> PlaceRanks(const server::ModelOptions& model, int rank_threads,
                                         int num_ranks, const HostCpus& host) {
  if (model.cpu_binding != "auto" && model.cpu_binding != "none") {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<int> cpus, ParseCpuList(model.cpu_binding));
    const int num_cpus = static_cast<int>(cpus.size());
    if (num_cpus % num_ranks != 0 || (rank_threads > 0 && rank_threads * num_ranks != num_cpus)) {
      return InvalidArgument(
          "--cpu-binding names {} CPUs, want {} for the {} ranks of this host", num_cpus,
          rank_threads > 0 ? fmt::format("{} ({} each)", rank_threads * num_ranks, rank_threads)
                           : fmt::format("a multiple of {}", num_ranks),
          num_ranks);
    }
    return HostPlacement{Deal(cpus, num_ranks, num_cpus / num_ranks), ""};
  }
  const int threads = rank_threads > 0 ? rank_threads : std::max(1, host.num_threads / num_ranks);
  HostPlacement placement;
  if (threads * num_ranks > host.num_threads) {
    placement.warning = fmt::format(
        "{} with {} each share {}: they wait for each other; fewer are faster ({})",
        Counted(num_ranks, "rank"), Counted(threads, "thread"), Counted(host.num_threads, "CPU"),
        num_ranks == 1 ? "--threads" : "--tensor-parallel-size, --rank-threads");
  }
  const int num_cpus = static_cast<int>(host.cpus.size());
  const bool whole_host = host.num_threads == num_cpus && threads * num_ranks <= num_cpus &&
                          (rank_threads == 0 || threads * num_ranks == num_cpus);
  const bool bind = model.cpu_binding == "auto" && whole_host;
  placement.ranks = Deal(bind ? host.cpus : std::vector<int>{}, num_ranks, threads);
  return placement;
}

}  // namespace nibble::cli
