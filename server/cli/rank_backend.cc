// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Ranks as a server's backend: where they are, what they were told, what became of them.
#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "fmt/ranges.h"

#include "base/clock.h"
#include "base/log.h"
#include "comm/cluster/cluster_hub.h"
#include "comm/ranks/local_ranks.h"
#include "comm/shm/stale_names.h"
#include "server/cli/all_reduce_setup.h"
#include "server/cli/model_backend.h"
#include "server/cli/model_setup.h"
#include "server/cli/parallel_setup.h"
#include "server/cli/policy_cache.h"
#include "server/cli/progress.h"
#include "server/cli/version.h"

namespace nibble::cli {
namespace {

// Loading a large model from a slow disk, and hosts that are started one after another.
constexpr std::chrono::milliseconds kStartTimeout{1'800'000};

class GroupWatch final : public engine::RankGroupObserver {
 public:
  explicit GroupWatch(server::RankMetrics* metrics) : metrics_(metrics) {}

  void OnRankLost(int rank, comm::LossReason reason, const std::string& /*why*/) override {
    metrics_->OnLost(rank, comm::ToString(reason));
  }
  void OnBroken(const std::string& /*why*/) override { metrics_->OnBroken(); }
  void OnFormed(uint64_t generation, double /*seconds*/) override {
    metrics_->OnFormed(generation);
  }

 private:
  server::RankMetrics* const metrics_;
};

std::string RandomId() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

absl::StatusOr<engine::RankGroupOptions> GroupOptions(const server::ServeConfig& config,
                                                      const HostSetup& host) {
  engine::RankGroupOptions options;
  options.node_of_rank = NodeOfRank(config.parallel);
  options.num_stages = config.parallel.pipeline_parallel_size;
  options.expert_size = host.experts.expert_size;
  options.group_id = RandomId();
  options.vocab_size = host.model.vocab_size;
  options.row_size = host.model.hidden_size;
  NIBBLE_ASSIGN_OR_RETURN(options.all_reduce, ToAllReduceOptions(config.parallel.all_reduce));
  options.rank_timeout = std::chrono::seconds(config.parallel.rank_timeout_seconds);
  options.start_timeout = kStartTimeout;
  return options;
}

// Everything that the measured choice depends on.
std::string PolicyKey(const server::ServeConfig& config, const engine::RankGroupOptions& group,
                      const HostSetup& host, const comm::RankHub& hub) {
  const server::AllReduceFlags& sums = config.parallel.all_reduce;
  std::vector<std::string> addresses;
  for (int rank = 0; rank < hub.size(); ++rank) addresses.push_back(hub.BindAddress(rank));
  return fmt::format(
      "nibble {} row {} stages {} nodes of ranks {} at {} threads {} {} {} {} groups {} scale "
      "{}{}{}",
      kVersion, group.row_size, group.num_stages, fmt::join(group.node_of_rank, ","),
      fmt::join(addresses, ","), host.placement.ranks.front().threads, HostCpuFeatures().name,
      ToString(host.device.isa), host.device.device, sums.group_size, sums.scale,
      sums.spikes ? " spikes" : "", sums.rotation ? " rotation" : "");
}

// Empty: to be measured.
comm::AllReducePolicy KeptPolicy(const PolicyCache& cache, bool measure_anew) {
  std::optional<comm::AllReducePolicy> kept;
  if (!measure_anew) kept = cache.Load();
  if (!kept.has_value()) return {};
  log::Info("all-reduce as an earlier start measured it ({}); --all-reduce-measure measures anew",
            cache.path());
  return *std::move(kept);
}

void KeepPolicy(const PolicyCache& cache, const comm::AllReducePolicy& policy) {
  const absl::Status stored = cache.Store(policy);
  if (stored.ok()) return;
  log::Warning("the measured all-reduce choice is not kept: {}", std::string(stored.message()));
}

// The nodes whose ranks share their memory, then the ranks with memory of their own.
std::vector<KvHost> HostsOf(const std::vector<engine::RankDescription>& ranks,
                            const std::vector<int>& node_of_rank, int num_nodes) {
  std::vector<KvHost> hosts(static_cast<size_t>(num_nodes),
                            {.available_bytes = std::numeric_limits<int64_t>::max()});
  std::vector<KvHost> devices;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const int node = node_of_rank[rank];
    KvHost& host = hosts[static_cast<size_t>(node)];
    if (ranks[rank].memory_is_own) {
      devices.push_back({.name = fmt::format("rank {}", rank),
                         .block_bytes = ranks[rank].kv_block_bytes,
                         .available_bytes = ranks[rank].available_bytes,
                         .memory_is_own = true,
                         .total_bytes = ranks[rank].total_bytes,
                         .step_token_bytes = ranks[rank].step_token_bytes,
                         .step_seq_bytes = ranks[rank].step_seq_bytes});
      continue;
    }
    if (num_nodes > 1) host.name = fmt::format("node {}", node);
    host.block_bytes += ranks[rank].kv_block_bytes;
    host.step_token_bytes += ranks[rank].step_token_bytes;
    host.step_seq_bytes += ranks[rank].step_seq_bytes;
    host.available_bytes = std::min(host.available_bytes, ranks[rank].available_bytes);
  }
  std::erase_if(hosts, [](const KvHost& host) {
    return host.available_bytes == std::numeric_limits<int64_t>::max();
  });
  hosts.insert(hosts.end(), devices.begin(), devices.end());
  return hosts;
}

// The processes of this host, or the head of a cluster whose nodes have all joined.
absl::StatusOr<std::unique_ptr<comm::RankHub>> OpenHub(const server::ServeConfig& config,
                                                       const HostSetup& host) {
  comm::LocalRanksOptions local = LocalRanksFor(config, host);
  const server::ParallelOptions& parallel = config.parallel;
  if (parallel.nnodes == 1) return comm::LocalRanks::Create(std::move(local));
  comm::ClusterHubOptions options;
  options.address = parallel.node_addr.empty() ? parallel.master_addr : parallel.node_addr;
  options.port = parallel.master_port;
  options.shape = ShapeOf(parallel);
  NIBBLE_ASSIGN_OR_RETURN(options.security, ReadSecurity(parallel));
  options.identity = IdentityOf(config, host);
  options.heartbeat = HeartbeatOf(parallel);
  options.local = std::move(local);
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<comm::ClusterHub> hub,
                          comm::ClusterHub::Listen(std::move(options)));
  log::Info("waiting at {}:{} for {} of {} nodes to join", parallel.master_addr, hub->port(),
            parallel.nnodes - 1, parallel.nnodes);
  // A signal ends the process while it waits: nothing is to be drained.
  NIBBLE_RETURN_IF_ERROR(
      hub->WaitForNodes(comm::Deadline::After(kStartTimeout), std::stop_token()));
  return hub;
}

void TakeDescriptions(const std::vector<engine::RankDescription>& ranks, ModelBackend* backend) {
  for (const engine::RankDescription& rank : ranks) backend->weight_bytes += rank.weight_bytes;
  // The ranks of a stage say the same, and so do most stages; the last one has the head.
  std::vector<std::string> warnings;
  for (const engine::RankDescription& rank : ranks) {
    for (const std::string& warning : rank.warnings) {
      if (std::find(warnings.begin(), warnings.end(), warning) == warnings.end()) {
        warnings.push_back(warning);
      }
    }
  }
  for (const std::string& warning : warnings) log::Warning("{}", warning);
  backend->quantization_name = ranks.back().quantization_name;
  backend->kv_dtype = static_cast<DType>(ranks.front().kv_dtype);
}

// Lines of the banner.
std::string Describe(const server::ServeConfig& config, const HostSetup& host,
                     const engine::RankGroup& group) {
  const server::ParallelOptions& parallel = config.parallel;
  const RankPlacement& rank = host.placement.ranks.front();
  std::string nodes;
  if (parallel.nnodes > 1) {
    nodes = fmt::format(" on {} nodes, joined at {}:{}", parallel.nnodes, parallel.master_addr,
                        parallel.master_port);
  }
  const std::string sums =
      parallel.tensor_parallel_size == 1
          ? ""
          : fmt::format("  all-reduce {}: {}\n", parallel.all_reduce.all_reduce,
                        ToString(group.policy()));
  const std::string device = host.device.is_cuda() ? group.ranks().front().device_name
                                                   : fmt::format("{}, {}", HostCpuFeatures().name,
                                                                 ToString(host.device.isa));
  return fmt::format(
      "  device     {}: {} ({})\n"
      "  ranks      {}{}, {} each{}\n"
      "{}",
      host.device.device, device, host.device.reason,
      DescribeRanks(parallel, host.experts, host.model.moe.has_value()), nodes,
      Counted(rank.threads, "thread"), rank.cpus.empty() ? "" : ", one to a CPU", sums);
}

std::vector<server::AllReduceLabels> LabelsOf(const comm::AllReducePolicy& policy) {
  std::vector<server::AllReduceLabels> labels;
  for (const comm::AllReduceChoice& choice : policy.choices) {
    labels.push_back({.up_to_bytes = choice.max_bytes == std::numeric_limits<int64_t>::max()
                                         ? "+Inf"
                                         : std::to_string(choice.max_bytes),
                      .algorithm = std::string(ToString(choice.algorithm)),
                      .codec = ToString(choice.codec)});
  }
  return labels;
}

}  // namespace

absl::StatusOr<ModelBackend> StartRanks(const server::ServeConfig& config,
                                        server::RankMetrics* metrics, const StartWatch& watch) {
  const int64_t start_ns = Clock::Monotonic().NowNs();
  NIBBLE_ASSIGN_OR_RETURN(const HostSetup host, SetUpHost(config));
  comm::RemoveStaleNames();
  ModelBackend backend;
  backend.model = host.model;
  backend.max_model_len = host.max_model_len;
  backend.experts = host.experts;
  NIBBLE_ASSIGN_OR_RETURN(backend.tokenizer, engine::Tokenizer::Load(config.model.model));
  NIBBLE_RETURN_IF_ERROR(CheckTokenizer(config.model.model, *backend.tokenizer, backend.model));

  NIBBLE_ASSIGN_OR_RETURN(engine::RankGroupOptions options, GroupOptions(config, host));
  if (config.parallel.nnodes > 1) {
    watch.Begin(fmt::format("waiting for {} to join at port {}",
                            Counted(config.parallel.nnodes - 1, "node"),
                            config.parallel.master_port));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<comm::RankHub> hub, OpenHub(config, host));
  // Ranks of one host take what shared memory is best at.
  const bool measures = options.all_reduce.mode == comm::AllReduceOptions::Mode::kAuto &&
                        SomeStageSpansNodes(config.parallel);
  const PolicyCache cache(measures ? CacheFolder() : "", PolicyKey(config, options, host, *hub));
  options.policy = KeptPolicy(cache, config.parallel.all_reduce_measure);

  const auto choose = [&](const std::vector<engine::RankDescription>& ranks)
      -> absl::StatusOr<engine::LocalExecutorOptions> {
    const std::vector<KvHost> hosts = HostsOf(ranks, options.node_of_rank, config.parallel.nnodes);
    NIBBLE_ASSIGN_OR_RETURN(backend.kv, SizeKvCache(config, backend.max_model_len, hosts));
    return engine::LocalExecutorOptions{.block_size = config.block_size,
                                        .num_blocks = backend.kv.num_blocks,
                                        .max_model_len = backend.max_model_len,
                                        .max_num_batched_tokens = config.max_num_batched_tokens,
                                        .max_num_seqs = config.max_num_seqs};
  };
  backend.observer = std::make_unique<GroupWatch>(metrics);
  std::unique_ptr<engine::RankGroup> group;
  {
    watch.Begin("loading weights");
    Progress progress("loading weights", "MB", {.divisor = 1'000'000});
    NIBBLE_ASSIGN_OR_RETURN(
        group, engine::RankGroup::Start(std::move(hub), options, choose, backend.observer.get(),
                                        [&](int64_t done, int64_t total) {
                                          progress.Update(done, total);
                                          watch.Progress(done, total);
                                        }));
  }
  TakeDescriptions(group->ranks(), &backend);
  if (options.policy.choices.empty()) KeepPolicy(cache, group->policy());
  if (config.parallel.tensor_parallel_size > 1) metrics->SetAllReduce(LabelsOf(group->policy()));
  backend.device = Describe(config, host, *group);
  backend.executor = std::move(group);
  backend.load_seconds = static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
  return backend;
}

}  // namespace nibble::cli
