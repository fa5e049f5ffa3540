// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The nodes that joined, as the head keeps them, and the order in which its observer hears of their
// ranks.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/cluster/cluster_options.h"
#include "comm/cluster/frame_parts.h"
#include "comm/cluster/head_link.h"
#include "comm/cluster/limited_log.h"
#include "comm/deadline.h"
#include "comm/ranks/rank_hub.h"

namespace nibble::comm {

// Thread-safe. Locks, in this order: Node::deliver, mutex_, a link's. The observer is called
// with Node::deliver held, which none of the calls that an observer may make takes.
class Members : public HeadLinkOwner {
 public:
  Members(const ClusterShape& shape, std::string run_id);

  // Calls to `observer` begin, and the ranks of all members are started.
  void Start(RankHub::Observer* observer);
  // No call to the observer begins after this; members are told goodbye.
  void Stop();
  // Until gRPC is done with all links.
  void WaitUntilGone();

  absl::Status WaitForAll(Deadline deadline, const std::stop_token& stop);
  std::string AddressOf(int node) const;             // of its ranks; empty before it joined
  std::string Describe(int node) const;              // "node 1 (10.77.0.2)"
  std::shared_ptr<HeadLink> LinkOf(int node) const;  // null while it is away

  // Sends heartbeats, and closes what was silent for `timeout`. `stall`: of this process.
  void Look(std::chrono::milliseconds timeout, std::chrono::steady_clock::duration stall);
  // When Look() would close the first one, if nothing came.
  std::chrono::steady_clock::time_point NextSilence(std::chrono::milliseconds timeout) const;

  // A call begins. Null: there are too many that have not joined, of this peer's host or of all
  // the world, or the head ends.
  HeadLink* BeginLink(grpc::CallbackServerContext* context, const JoinChecks* checks);

  absl::Status OnJoin(const std::shared_ptr<HeadLink>& link, const v1::JoinRequest& join) override;
  absl::Status OnMessage(HeadLink* link, v1::NodeMessage* message) override;
  void OnClosed(HeadLink* link, const absl::Status& why) override;
  void OnGone() override;

 private:
  struct Rank {
    bool up = false;
    FrameJoiner joiner;
  };
  struct Node {
    std::mutex deliver;       // held while the observer is told of this node's ranks
    std::vector<Rank> ranks;  // guarded by deliver

    // Guarded by mutex_:
    std::shared_ptr<HeadLink> link;
    std::string address;
  };

  // INVALID_ARGUMENT when `rank` is none of this node's.
  absl::StatusOr<Rank*> RankOf(int node, uint32_t rank);
  bool Delivers(int node, const HeadLink* link) const;
  absl::Status Deliver(int node, v1::NodeMessage* message);
  absl::Status DeliverFrame(int node, v1::FramePart* part);
  void TakeDown(int node, const std::string& why);
  static v1::HeadMessage StartRanksMessage();

  const ClusterShape shape_;
  const std::string run_id_;
  LimitedLog refusals_;
  std::vector<std::unique_ptr<Node>> nodes_;  // [num_nodes - 1]: node n is at n - 1

  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  // Guarded by mutex_. A member's link is in links_, or its OnClosed runs.
  RankHub::Observer* observer_ = nullptr;  // set: started
  bool stopping_ = false;
  std::vector<std::shared_ptr<HeadLink>> links_;  // of open calls, joined or not
  int num_links_ = 0;                             // that gRPC is not done with
};

}  // namespace nibble::comm
