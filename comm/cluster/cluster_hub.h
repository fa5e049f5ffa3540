// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The head of a cluster: all ranks of the group, those of this host and those of the nodes that
// join over gRPC (node.h is their side). README.md draws the handshake and says what is encrypted.
//
//   NIBBLE_ASSIGN_OR_RETURN(auto hub, ClusterHub::Listen(std::move(options)));
//   NIBBLE_RETURN_IF_ERROR(hub->WaitForNodes(Deadline::After(start_timeout), stop_token));
//   RankGroup::Start(std::move(hub), ...)
//
// Nodes may join from Listen() on and whenever they come back later; their ranks are started once
// Start() was called. A node whose connection is lost takes its ranks down (OnDown naming node and
// address); when it joins again, those that lived are up again with what they had loaded, and the
// others are started anew.
#pragma once

#include <memory>
#include <stop_token>
#include <string>

#include "base/status.h"
#include "comm/cluster/cluster_options.h"
#include "comm/deadline.h"
#include "comm/ranks/local_ranks.h"
#include "comm/ranks/rank_hub.h"

namespace nibble::comm {

struct ClusterHubOptions {
  std::string address;  // of the interface to listen on, numeric or a name; nodes reach it here
  int port = 0;         // 0: any free one, see port()
  ClusterShape shape;
  ClusterIdentity identity;
  ClusterSecurity security;
  HeartbeatOptions heartbeat;
  LocalRanksOptions local;  // of node 0; first_rank and num_ranks are set from `shape`
};

class ClusterHub : public RankHub {
 public:
  // Binds and takes joins. INVALID_ARGUMENT for options (all violations), UNAVAILABLE naming the
  // address when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<ClusterHub>> Listen(ClusterHubOptions options);
  ~ClusterHub() override = default;  // Stop()s

  virtual int port() const = 0;

  // Until all nodes are there. DEADLINE_EXCEEDED naming those that are missing; CANCELLED on
  // `stop`.
  virtual absl::Status WaitForNodes(Deadline deadline, const std::stop_token& stop) = 0;

  // RankHub. BindAddress(): as the node told when it joined last; of node 0: options.address.
  // Stop() says goodbye to the nodes, which then end.
};

}  // namespace nibble::comm
