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
#include "engine/model/shard.h"
#include "server/cli/all_reduce_setup.h"
#include "server/cli/loss_reason.h"
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

  void OnRankLost(int rank, const std::string& why) override {
    metrics_->OnLost(rank, LossReason(why));
  }
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

// Everything that the measured choice depends on.
std::string PolicyKey(const server::ServeConfig& config, const engine::RankGroupOptions& group,
                      const HostPlacement& placement, Isa isa) {
  const server::AllReduceFlags& sums = config.parallel.all_reduce;
  return fmt::format(
      "nibble {} row {} nodes of ranks {} at {} threads {} {} {} groups {} scale {}{}{}", kVersion,
      group.row_size, fmt::join(group.node_of_rank, ","),
      fmt::join(group.bind_address_of_node, ","), placement.ranks.front().threads,
      HostCpuFeatures().name, ToString(isa), sums.group_size, sums.scale,
      sums.spikes ? " spikes" : "", sums.rotation ? " rotation" : "");
}

std::vector<KvHost> HostsOf(const std::vector<engine::RankDescription>& ranks,
                            const std::vector<int>& node_of_rank, int num_nodes) {
  std::vector<KvHost> hosts(static_cast<size_t>(num_nodes),
                            {.available_bytes = std::numeric_limits<int64_t>::max()});
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const int node = node_of_rank[rank];
    KvHost& host = hosts[static_cast<size_t>(node)];
    if (num_nodes > 1) host.name = fmt::format("node {}", node);
    host.block_bytes += ranks[rank].kv_block_bytes;
    host.available_bytes = std::min(host.available_bytes, ranks[rank].available_bytes);
  }
  return hosts;
}

// The processes of this host, or the head of a cluster whose nodes have all joined. Fills the
// addresses of `group`.
absl::StatusOr<std::unique_ptr<comm::RankHub>> OpenHub(const server::ServeConfig& config,
                                                       comm::LocalRanksOptions local,
                                                       engine::RankGroupOptions* group) {
  const server::ParallelOptions& parallel = config.parallel;
  if (parallel.nnodes == 1) {
    group->bind_address_of_node = {"127.0.0.1"};
    return comm::LocalRanks::Create(std::move(local));
  }
  comm::ClusterHubOptions options;
  options.address = parallel.node_addr.empty() ? parallel.master_addr : parallel.node_addr;
  options.port = parallel.master_port;
  options.shape = ShapeOf(parallel);
  NIBBLE_ASSIGN_OR_RETURN(options.security, ReadSecurity(parallel));
  NIBBLE_ASSIGN_OR_RETURN(options.identity, IdentityOf(config));
  options.heartbeat = HeartbeatOf(parallel);
  options.local = std::move(local);
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<comm::ClusterHub> hub,
                          comm::ClusterHub::Listen(std::move(options)));
  log::Info("waiting at {}:{} for {} of {} nodes to join", parallel.master_addr, hub->port(),
            parallel.nnodes - 1, parallel.nnodes);
  // A signal ends the process while it waits: nothing is to be drained.
  NIBBLE_RETURN_IF_ERROR(
      hub->WaitForNodes(comm::Deadline::After(kStartTimeout), std::stop_token()));
  for (int node = 0; node < parallel.nnodes; ++node) {
    group->bind_address_of_node.push_back(hub->NodeAddress(node));
  }
  return hub;
}

std::string Describe(const server::ServeConfig& config, const HostPlacement& placement, Isa isa,
                     const engine::RankGroup& group, const comm::AllReduceOptions& all_reduce) {
  const server::ParallelOptions& parallel = config.parallel;
  const RankPlacement& rank = placement.ranks.front();
  std::string text = fmt::format(
      "  device     cpu: {}, {}\n"
      "  ranks      {}{}, {} threads each{}\n"
      "  all-reduce {}{}: {}\n",
      HostCpuFeatures().name, ToString(isa), parallel.tensor_parallel_size,
      parallel.nnodes > 1 ? fmt::format(" on {} nodes, joined at {}:{}", parallel.nnodes,
                                        parallel.master_addr, parallel.master_port)
                          : "",
      rank.threads, rank.cpus.empty() ? "" : ", one to a CPU", parallel.all_reduce.all_reduce,
      all_reduce.mode == comm::AllReduceOptions::Mode::kAuto ? " (measured)" : "",
      ToString(group.policy()));
  return text;
}

std::vector<server::AllReduceLabels> LabelsOf(const comm::AllReducePolicy& policy) {
  std::vector<server::AllReduceLabels> labels;
  for (const comm::AllReduceChoice& choice : policy.choices) {
    labels.push_back(
        {.up_to_bytes = choice.max_bytes == std::numeric_limits<int64_t>::max()
                            ? "+Inf"
                            : std::to_string(choice.max_bytes),
         .algorithm = choice.algorithm == comm::Algorithm::kOneShot ? "one-shot" : "two-shot",
         .codec = ToString(choice.codec)});
  }
  return labels;
}

}  // namespace

absl::StatusOr<ModelBackend> StartRanks(const server::ServeConfig& config,
                                        server::RankMetrics* metrics) {
  const server::ParallelOptions& parallel = config.parallel;
  const int64_t start_ns = Clock::Monotonic().NowNs();
  ModelBackend backend;
  NIBBLE_RETURN_IF_ERROR(CheckModelDirectory(config.model.model));
  NIBBLE_ASSIGN_OR_RETURN(const DeviceChoice device, ChooseDevice(config.model));
  NIBBLE_ASSIGN_OR_RETURN(backend.tokenizer, engine::Tokenizer::Load(config.model.model));
  NIBBLE_ASSIGN_OR_RETURN(backend.model, engine::LoadModelConfig(config.model.model));
  NIBBLE_RETURN_IF_ERROR(CheckTokenizer(config.model.model, *backend.tokenizer, backend.model));
  NIBBLE_RETURN_IF_ERROR(
      engine::CheckSplit(backend.model, {.rank = 0, .size = parallel.tensor_parallel_size}));
  NIBBLE_ASSIGN_OR_RETURN(backend.max_model_len,
                          ChooseMaxModelLen(config, backend.model.max_position_embeddings));
  NIBBLE_ASSIGN_OR_RETURN(const HostPlacement placement,
                          PlaceRanks(config.model, parallel.rank_threads, parallel.ranks_per_node(),
                                     HostCpus::OfThisProcess()));
  if (!placement.warning.empty()) log::Warning("{}", placement.warning);

  engine::RankGroupOptions options;
  options.node_of_rank = NodeOfRank(parallel);
  options.group_id = RandomId();
  options.vocab_size = backend.model.vocab_size;
  options.row_size = backend.model.hidden_size;
  NIBBLE_ASSIGN_OR_RETURN(options.all_reduce, ToAllReduceOptions(parallel.all_reduce));
  options.rank_timeout = std::chrono::seconds(parallel.rank_timeout_seconds);
  options.start_timeout = kStartTimeout;
  NIBBLE_ASSIGN_OR_RETURN(
      std::unique_ptr<comm::RankHub> hub,
      OpenHub(config, LocalRanksFor(config, placement, backend.max_model_len), &options));
  const bool measures = options.all_reduce.mode == comm::AllReduceOptions::Mode::kAuto;
  const PolicyCache cache(measures ? CacheFolder() : "",
                          PolicyKey(config, options, placement, device.isa));
  std::optional<comm::AllReducePolicy> kept;
  if (!parallel.all_reduce_measure) kept = cache.Load();
  if (kept.has_value()) options.policy = *kept;

  const auto choose = [&](const std::vector<engine::RankDescription>& ranks)
      -> absl::StatusOr<engine::LocalExecutorOptions> {
    const std::vector<KvHost> hosts = HostsOf(ranks, options.node_of_rank, parallel.nnodes);
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
    Progress progress("loading weights", "MB", {.divisor = 1'000'000});
    NIBBLE_ASSIGN_OR_RETURN(
        group, engine::RankGroup::Start(
                   std::move(hub), options, choose, backend.observer.get(),
                   [&](int64_t done, int64_t total) { progress.Update(done, total); }));
  }
  for (const engine::RankDescription& rank : group->ranks()) {
    backend.weight_bytes += rank.weight_bytes;
  }
  for (const std::string& warning : group->ranks().front().warnings) log::Warning("{}", warning);
  backend.quantization_name = group->ranks().front().quantization_name;
  backend.kv_dtype = static_cast<DType>(group->ranks().front().kv_dtype);
  if (!kept.has_value()) {
    if (const absl::Status stored = cache.Store(group->policy()); !stored.ok()) {
      log::Warning("the measured all-reduce choice is not kept: {}", std::string(stored.message()));
    }
  }
  metrics->SetAllReduce(LabelsOf(group->policy()));
  backend.device = Describe(config, placement, device.isa, *group, options.all_reduce);
  backend.executor = std::move(group);
  backend.load_seconds = static_cast<double>(Clock::Monotonic().NowNs() - start_ns) * 1e-9;
  return backend;
}

}  // namespace nibble::cli
