// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/node_command.h"

#include <chrono>
#include <string>
#include <utility>

#include "base/log.h"
#include "comm/cluster/node.h"
#include "comm/shm/stale_names.h"
#include "engine/exec/rank_protocol.h"
#include "server/cli/commands.h"
#include "server/cli/parallel_setup.h"
#include "server/cli/version.h"

namespace nibble::cli {
namespace {

struct Node {
  comm::NodeOptions options;
  HostSetup host;
};

absl::StatusOr<Node> Prepare(const server::ServeConfig& config) {
  const server::ParallelOptions& parallel = config.parallel;
  Node node;
  NIBBLE_RETURN_IF_ERROR(CheckCluster(parallel));
  NIBBLE_ASSIGN_OR_RETURN(node.host, SetUpHost(config));
  node.options.head_address = parallel.master_addr;
  node.options.head_port = parallel.master_port;
  node.options.node = parallel.node_rank;
  node.options.shape = ShapeOf(parallel);
  node.options.identity = IdentityOf(config, node.host);
  NIBBLE_ASSIGN_OR_RETURN(node.options.security, ReadSecurity(parallel));
  node.options.heartbeat = HeartbeatOf(parallel);
  // As long as node 0 may take for its answers, which these ranks compute.
  node.options.goodbye_timeout = std::chrono::seconds(config.lifecycle.drain_delay_seconds +
                                                      config.lifecycle.shutdown_timeout_seconds);
  node.options.bind_address = parallel.node_addr;
  node.options.local = LocalRanksFor(config, node.host);
  // It makes a rank leave the group it is in; what it answers finds no one.
  node.options.link_lost_frame = engine::MakeFrame(engine::RankMessage::kHello);
  return node;
}

}  // namespace

int RunServeNode(const server::ServeConfig& config, SignalWatch* watch) {
  const server::ParallelOptions& parallel = config.parallel;
  absl::StatusOr<Node> node = Prepare(config);
  if (!node.ok()) return Fail(node.status());
  comm::RemoveStaleNames();
  const int first = parallel.node_rank * parallel.ranks_per_node();
  const RankPlacement& rank = node->host.placement.ranks.front();
  PrintMessage(fmt::format(
      "nibble {}: node {} of {}, ranks {}..{} of {}, {} each{}\n"
      "  model      {} ({:.12}...)\n"
      "  joins      {}:{}, which serves HTTP and gRPC\n",
      kVersion, parallel.node_rank, parallel.nnodes, first, first + parallel.ranks_per_node() - 1,
      parallel.world_size(), Counted(rank.threads, "thread"),
      rank.cpus.empty() ? "" : ", one to a CPU", config.model.model,
      node->options.identity.model_fingerprint, parallel.master_addr, parallel.master_port));
  log::Info(
      "this node serves no clients: options of ports, keys, TLS, limits, health and logs of "
      "requests "
      "are node 0's and mean nothing here");
  const absl::Status status =
      comm::RunNode(std::move(node->options), watch->StartServing("this node ends with node 0"));
  if (!status.ok()) return Fail(status);
  log::Info("the ranks of this node have ended; bye");
  return 0;
}

}  // namespace nibble::cli
