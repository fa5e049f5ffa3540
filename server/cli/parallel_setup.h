// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From the options of ranks and nodes to what comm/ and engine/ take.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/cluster/cluster_options.h"
#include "comm/ranks/local_ranks.h"
#include "engine/model/model_config.h"
#include "server/cli/expert_setup.h"
#include "server/cli/memory_file.h"
#include "server/cli/model_setup.h"
#include "server/cli/rank_placement.h"
#include "server/config.h"

namespace nibble::cli {

// NIBBLE_CLUSTER_SECRET, which is then removed from the environment: ranks need not know it.
std::string TakeSecretFromEnvironment();

// --max-model-len, or the model's maximum. INVALID_ARGUMENT for more than that.
absl::StatusOr<int64_t> ChooseMaxModelLen(const server::ServeConfig& config,
                                          int64_t max_position_embeddings);

// Whether what computes is a group of processes, or the model is in this one; see
// --distributed-executor-backend. A lost device (CUDA's sticky errors) costs its process.
bool RanksAreProcesses(const server::ServeConfig& config);

// What every host of a group finds out before it starts ranks.
struct HostSetup {
  DeviceChoice device;
  engine::ModelConfig model;
  int64_t max_model_len = 0;
  std::string model_fingerprint;  // a rank that starts anew loads nothing else
  ExpertSetup experts;
  std::shared_ptr<const MemoryFile> layout_file;  // experts.layout for ranks; null: none
  HostPlacement placement;
};
// Refuses a model that does not split into so many ranks; warns of a placement that is slow.
absl::StatusOr<HostSetup> SetUpHost(const server::ServeConfig& config);

// The processes of this host's ranks, each on its CPUs.
comm::LocalRanksOptions LocalRanksFor(const server::ServeConfig& config, const HostSetup& host);

// node_of_rank [world_size]
std::vector<int> NodeOfRank(const server::ParallelOptions& options);
// Whether sums go over the network, and not only activations from stage to stage.
bool SomeStageSpansNodes(const server::ParallelOptions& options);

// Reads the files that --cluster-* name.
absl::StatusOr<comm::ClusterSecurity> ReadSecurity(const server::ParallelOptions& options);
// Before ports are open: the secret or the certificates of a group of hosts, and its port. OK with
// one node.
absl::Status CheckCluster(const server::ParallelOptions& options);
comm::ClusterShape ShapeOf(const server::ParallelOptions& options);
comm::ClusterIdentity IdentityOf(const server::ServeConfig& config, const HostSetup& host);
comm::HeartbeatOptions HeartbeatOf(const server::ParallelOptions& options);

}  // namespace nibble::cli
