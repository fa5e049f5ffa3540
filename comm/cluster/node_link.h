// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A node's end of its call to the head: the handshake, and messages once it is a member.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>

#include "grpcpp/grpcpp.h"

#include "base/status.h"
#include "comm/cluster/handshake.h"
#include "comm/cluster/node.h"
#include "comm/cluster/outbox.h"
#include "comm/ranks/rank_hub.h"
#include "nibble/v1/cluster.grpc.pb.h"

namespace nibble::comm {

class NodeLink;

// Calls come from gRPC's threads, one after another, none with a lock of the link held.
class NodeLinkOwner {
 public:
  virtual ~NodeLinkOwner() = default;
  // The head wants ranks; `run_id` tells one process of it from the next.
  virtual void OnStartRanks(NodeLink* link, const std::string& run_id) = 0;
  // Of this node, that is checked.
  virtual void OnRestart(int rank, const std::string& why) = 0;
  virtual absl::Status OnFrame(v1::FramePart&& part) = 0;
  virtual bool IsOurs(uint32_t rank) const = 0;
};

// One call. gRPC's functions are called under mutex_ and not once closing_, and a hold keeps OnDone
// away until then.
class NodeLink final : public grpc::ClientBidiReactor<v1::NodeMessage, v1::HeadMessage> {
 public:
  using Clock = std::chrono::steady_clock;

  // How a call ended.
  struct End {
    absl::Status status;   // what the head said, or what happened to the connection
    bool goodbye = false;  // the head ends, and so does this node
    bool joined = false;   // it had been a member
  };

  // `options` and `owner` must outlive it.
  NodeLink(const NodeOptions* options, std::string bind_address, NodeLinkOwner* owner);

  // Calls the head, and returns when the call has ended: of itself, by silence or by `stop`
  // (NodeOptions::goodbye_timeout).
  End Run(const std::stop_token& stop);

  // Thread-safe; nothing once it is closed.
  void Push(v1::NodeMessage message);
  void PushFrame(int rank, Frame frame);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  enum class State { kCalling, kChallenged, kMember };

  void Begin();
  void Watch(const std::stop_token& stop);
  // When this node ends of itself, after a stop that came now.
  Clock::time_point EndAfterStop() const;
  std::chrono::milliseconds Patience() const;
  absl::Status Handle();
  absl::Status HandleChallenge();
  absl::Status HandleWelcome();
  absl::Status HandleMember();
  void PushLocked(v1::NodeMessage message);
  // Ends the call with a reason of this side, or, OK, lets it end with what the head said. Once.
  void Close(const absl::Status& why);

  const NodeOptions* const options_;
  const std::string bind_address_;
  NodeLinkOwner* const owner_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  std::atomic<Clock::time_point> last_heard_;
  std::atomic<State> state_{State::kCalling};
  std::atomic<bool> goodbye_{false};
  std::atomic<bool> has_ranks_{false};  // the head wanted them
  // The reading side's own:
  v1::HeadMessage incoming_;
  Nonces nonces_;
  std::string run_id_;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  // Guarded by mutex_:
  Outbox<v1::NodeMessage> outbox_;
  bool closing_ = false;
  std::optional<absl::Status> why_;   // of this side
  std::optional<absl::Status> done_;  // gRPC is done with the call
};

}  // namespace nibble::comm
