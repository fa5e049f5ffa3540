// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The head's end of one node's call: the handshake, and messages once the node is a member.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"

#include "base/status.h"
#include "comm/cluster/handshake.h"
#include "comm/cluster/outbox.h"
#include "comm/ranks/rank_hub.h"
#include "nibble/v1/cluster.grpc.pb.h"

namespace nibble::comm {

class HeadLink;

// Who has the links. Calls come from gRPC's threads, those of one link one after another, but
// for OnClosed; none with a lock of the link held.
class HeadLinkOwner {
 public:
  virtual ~HeadLinkOwner() = default;
  // The node passed all checks of itself. OK: it is a member now, and was welcomed (Welcome()).
  // OnClosed may have come before this: such a link cannot become a member's any more.
  virtual absl::Status OnJoin(const std::shared_ptr<HeadLink>& link,
                              const v1::JoinRequest& join) = 0;
  // Of a member, after the handshake. An error ends the call with it.
  virtual absl::Status OnMessage(HeadLink* link, v1::NodeMessage* message) = 0;
  // Once for each link that was begun: the call ends, was refused or is lost.
  virtual void OnClosed(HeadLink* link, const absl::Status& why) = 0;
  // The last call for a link.
  virtual void OnGone() = 0;
};

struct JoinChecks {
  ClusterShape shape;
  ClusterIdentity identity;
  std::string secret;
};

// Invariants
//  1. It lives until gRPC is done with it (self_, dropped in OnDone) and nobody else holds it.
//  2. gRPC's functions are called under mutex_ and not once finished_, which one thread sets and
//     then finishes the call: OnDone comes only after that. gRPC reacts on threads of its own,
//     never within such a call.
class HeadLink final : public grpc::ServerBidiReactor<v1::NodeMessage, v1::HeadMessage>,
                       public std::enable_shared_from_this<HeadLink> {
 public:
  using Clock = std::chrono::steady_clock;

  // `checks` and `owner` must outlive OnGone().
  HeadLink(grpc::CallbackServerContext* context, const JoinChecks* checks, HeadLinkOwner* owner);

  // Once, and the calls of the owner begin.
  void Begin();

  // "10.77.0.2:41234". What TCP says.
  const std::string& peer() const { return peer_; }
  // "10.77.0.2"
  std::string_view peer_host() const { return std::string_view(peer_).substr(0, peer_.rfind(':')); }
  // Of a member, its number.
  int node() const { return node_; }
  bool is_member() const { return state_ == State::kMember; }

  // From OnJoin: it is a member's, and the head proves itself to the node.
  void Welcome(const std::string& run_id);
  // Thread-safe; nothing once it is closed.
  void Push(v1::HeadMessage message);
  void PushFrame(int rank, Frame frame);
  // A heartbeat, unless something is on its way anyhow.
  void Beat();
  // Ends the call with `why`, for the node to read, and cuts the connection if `cut`: a peer that
  // does not answer would never take a status. Thread-safe, once.
  void Close(const absl::Status& why, bool cut);

  Clock::time_point last_heard() const { return last_heard_; }
  // This process was stopped for a while: that was not the peer's silence.
  void Forgive(Clock::duration stall) {
    if (stall > stall.zero()) last_heard_ = last_heard_.load() + stall;
  }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  enum class State { kHello, kChallenged, kMember };

  absl::Status Handle();
  absl::Status HandleHello();
  absl::Status HandleJoin();
  void PushLocked(v1::HeadMessage message);

  std::shared_ptr<HeadLink> self_;
  grpc::CallbackServerContext* const context_;
  const JoinChecks* const checks_;
  HeadLinkOwner* const owner_;
  const std::string peer_;
  std::atomic<Clock::time_point> last_heard_;
  std::atomic<State> state_{State::kHello};
  std::atomic<int> node_{0};
  // The reading side's own:
  v1::NodeMessage incoming_;
  Nonces nonces_;

  std::mutex mutex_;
  // Guarded by mutex_:
  Outbox<v1::HeadMessage> outbox_;
  bool finished_ = false;
};

}  // namespace nibble::comm
