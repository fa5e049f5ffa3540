// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A node of a cluster that is not its head: joins, starts its ranks when the head says so, relays
// frames between them and the head, and joins again whenever the connection is lost.
#pragma once

#include <chrono>
#include <optional>
#include <stop_token>
#include <string>

#include "base/status.h"
#include "comm/cluster/cluster_options.h"
#include "comm/ranks/local_ranks.h"

namespace nibble::comm {

struct NodeOptions {
  std::string head_address;
  int head_port = 0;
  int node = 1;  // 1..num_nodes - 1
  ClusterShape shape;
  ClusterIdentity identity;
  ClusterSecurity security;
  HeartbeatOptions heartbeat;
  // How long ranks that serve are kept after `stop`: until the head, whose answers need them, has
  // said goodbye.
  std::chrono::milliseconds goodbye_timeout{0};
  // What this host's ranks bind, told to the head. Empty: this host's address on the way there.
  std::string bind_address;
  LocalRanksOptions local;  // first_rank and num_ranks are set from `node` and `shape`
  // Given to every rank of this host when the connection is lost, so that none stays in a
  // collective whose peers are gone.
  std::optional<Frame> link_lost_frame;
};

// Returns when the head said goodbye or `stop` was requested: OK, the ranks ended. While they serve
// a stop waits for the goodbye, for a lost head or for goodbye_timeout. An error when the head
// refuses this node for good (another secret, version, model, options or shape), or is not who it
// should be; while the head is not there it is tried again and again.
absl::Status RunNode(NodeOptions options, const std::stop_token& stop);

}  // namespace nibble::comm
