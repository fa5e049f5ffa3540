// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/node.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "base/host_port.h"
#include "base/log.h"
#include "comm/cluster/addresses.h"
#include "comm/cluster/credentials.h"
#include "comm/cluster/frame_parts.h"
#include "comm/cluster/grpc_log.h"
#include "comm/cluster/node_link.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kFirstRetry{100};
constexpr milliseconds kLongestRetry{1'000};
// An outage is told again after so long.
constexpr std::chrono::seconds kTellAgain{60};
// The head finds out that this node's last connection is dead in its heartbeat timeout; another
// node that is alive stays.
constexpr milliseconds kNumberPatience{10'000};

// Between the ranks of this host and the link to the head.
class Relay final : public RankHub::Observer, public NodeLinkOwner {
 public:
  Relay(std::unique_ptr<LocalRanks> ranks, int first_rank, std::optional<Frame> link_lost_frame)
      : ranks_(std::move(ranks)),
        first_rank_(first_rank),
        link_lost_frame_(std::move(link_lost_frame)),
        states_(static_cast<size_t>(ranks_->size())) {}

  // Of the ranks. Called by their thread.
  void OnUp(int rank) override;
  void OnFrame(int rank, Frame frame) override;
  void OnDown(int rank, LossReason reason, const std::string& why) override;

  // Of the link.
  void OnStartRanks(NodeLink* link, const std::string& run_id) override;
  void OnRestart(int rank, const std::string& why) override { ranks_->Restart(rank, why); }
  absl::Status OnFrame(v1::FramePart&& part) override;
  bool IsOurs(uint32_t rank) const override {
    return rank >= static_cast<uint32_t>(first_rank_) &&
           rank - static_cast<uint32_t>(first_rank_) < states_.size();
  }

  // The link has ended: no call of it comes any more.
  void OnLinkEnded();
  void Stop() { ranks_->Stop(); }

 private:
  struct State {
    bool up = false;
    bool announced = false;  // to the head that link_ leads to, as up
    FrameJoiner joiner;      // the link's own
  };
  State& At(int rank) { return states_[static_cast<size_t>(rank - first_rank_)]; }
  void AnnounceLocked(int rank);

  const std::unique_ptr<LocalRanks> ranks_;
  const int first_rank_;
  const std::optional<Frame> link_lost_frame_;
  std::mutex mutex_;
  // Guarded by mutex_:
  std::vector<State> states_;  // but for joiner
  NodeLink* link_ = nullptr;   // set: the head wants ranks
  std::string run_id_;         // of the head for which the ranks were started; empty: they were not
};

void Relay::OnUp(int rank) {
  const std::lock_guard lock(mutex_);
  At(rank).up = true;
  if (link_ != nullptr) AnnounceLocked(rank);
}

void Relay::OnFrame(int rank, Frame frame) {
  const std::lock_guard lock(mutex_);
  if (At(rank).announced) link_->PushFrame(rank, std::move(frame));
}

void Relay::OnDown(int rank, LossReason reason, const std::string& why) {
  const std::lock_guard lock(mutex_);
  At(rank).up = false;
  if (!std::exchange(At(rank).announced, false)) return;
  v1::NodeMessage message;
  message.mutable_rank_down()->set_rank(static_cast<uint32_t>(rank));
  message.mutable_rank_down()->set_why(why);
  message.mutable_rank_down()->set_reason(static_cast<uint32_t>(reason));
  link_->Push(std::move(message));
}

void Relay::AnnounceLocked(int rank) {
  At(rank).announced = true;
  v1::NodeMessage message;
  message.mutable_rank_up()->set_rank(static_cast<uint32_t>(rank));
  link_->Push(std::move(message));
}

void Relay::OnStartRanks(NodeLink* link, const std::string& run_id) {
  const std::lock_guard lock(mutex_);
  if (link_ != nullptr) return;
  link_ = link;
  if (run_id_.empty()) {
    run_id_ = run_id;
    if (const absl::Status status = ranks_->Start(this); !status.ok()) {
      log::Error("cluster: {}", std::string(status.message()));
    }
    return;
  }
  const bool another_head = std::exchange(run_id_, run_id) != run_id;
  for (int rank = first_rank_; rank < first_rank_ + ranks_->size(); ++rank) {
    if (another_head) {
      ranks_->Restart(rank, "the head is another process than before");
    } else if (At(rank).up) {
      AnnounceLocked(rank);
    } else {
      ranks_->Restart(rank, "the node joined again");
    }
  }
}

absl::Status Relay::OnFrame(v1::FramePart&& part) {
  const auto rank = static_cast<int>(part.rank());
  Frame frame;
  NIBBLE_ASSIGN_OR_RETURN(const bool whole, At(rank).joiner.Add(std::move(part), &frame));
  if (whole) ranks_->Send(rank, std::move(frame));
  return absl::OkStatus();
}

void Relay::OnLinkEnded() {
  const std::lock_guard lock(mutex_);
  const bool was_linked = std::exchange(link_, nullptr) != nullptr;
  for (int rank = first_rank_; rank < first_rank_ + ranks_->size(); ++rank) {
    At(rank).announced = false;
    At(rank).joiner.Reset();
    if (was_linked && link_lost_frame_.has_value()) ranks_->Send(rank, *link_lost_frame_);
  }
}

// Whether trying again cannot help.
bool IsFinal(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:  // another gRPC service
      return true;
    default:
      return false;
  }
}

void Sleep(milliseconds time, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  wake.wait_for(lock, stop, time, [] { return false; });
}

// Joins again and again.
class Membership {
 public:
  Membership(const NodeOptions* options, Relay* relay)
      : options_(*options),
        relay_(*relay),
        head_(HostAndPort(options->head_address, options->head_port)) {}

  absl::Status Run(const std::stop_token& stop);

 private:
  absl::StatusOr<NodeLink::End> RunLink(const std::stop_token& stop);
  void Tell(const NodeLink::End& end);

  const NodeOptions& options_;
  Relay& relay_;
  const std::string head_;
  Clock::time_point told_;  // of this outage
  bool told_any_ = false;
};

absl::StatusOr<NodeLink::End> Membership::RunLink(const std::stop_token& stop) {
  std::string bind_address = options_.bind_address;
  if (bind_address.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(bind_address, LocalAddressTowards(options_.head_address));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(bind_address, ToNumeric(bind_address));
  }
  NodeLink link(&options_, std::move(bind_address), &relay_);
  NodeLink::End end = link.Run(stop);
  relay_.OnLinkEnded();
  return end;
}

// Why a node could not join, with what to look at where gRPC's own words leave that open.
std::string WhyNot(const absl::Status& status) {
  std::string why(status.message());
  constexpr std::string_view kBeforeTheReason = "last error: ";
  if (const size_t at = why.find(kBeforeTheReason); at != std::string::npos) {
    why.erase(0, at + kBeforeTheReason.size());
  }
  const auto says = [&](std::string_view text) { return why.find(text) != std::string::npos; };
  if (says("is not in peer certificate")) {
    why += " (give the name that node 0's certificate holds by --cluster-tls-server-name)";
  } else if (says("Ssl handshake failed") || says("Socket closed")) {
    why +=
        " (do both sides use TLS, with certificates of one CA, or neither? node 0's log may say "
        "more)";
  }
  return why;
}

void Membership::Tell(const NodeLink::End& end) {
  const std::string why = end.joined ? std::string(end.status.message()) : WhyNot(end.status);
  if (end.joined) {
    log::Warning("cluster: node {} lost the head at {}: {}; joining again", options_.node, head_,
                 why);
  } else if (!told_any_ || Clock::now() - told_ >= kTellAgain) {
    log::Warning("cluster: node {} cannot join the head at {}: {}; trying until it can",
                 options_.node, head_, why);
  } else {
    return;
  }
  told_any_ = true;
  told_ = Clock::now();
}

absl::Status Membership::Run(const std::stop_token& stop) {
  milliseconds retry = kFirstRetry;
  std::optional<Clock::time_point> number_taken;  // since when
  while (!stop.stop_requested()) {
    absl::StatusOr<NodeLink::End> ended = RunLink(stop);
    const NodeLink::End end = ended.ok() ? *ended : NodeLink::End{.status = ended.status()};
    if (end.goodbye) {
      log::Info("cluster: the head at {} ended, and so does node {}", head_, options_.node);
      return absl::OkStatus();
    }
    if (stop.stop_requested()) break;
    if (end.joined) {
      told_any_ = false;
      retry = kFirstRetry;
    }
    const bool taken = end.status.code() == absl::StatusCode::kAlreadyExists;
    if (!taken) number_taken.reset();
    if (taken && !number_taken.has_value()) number_taken = Clock::now();
    const bool given_up =
        taken && Clock::now() - *number_taken >= options_.heartbeat.timeout + kNumberPatience;
    if (!end.joined && (IsFinal(end.status) || given_up)) {
      return Annotate(end.status, fmt::format("the head at {} and node {} do not go together",
                                              head_, options_.node));
    }
    Tell(end);
    Sleep(retry, stop);
    retry = std::min(2 * retry, kLongestRetry);
  }
  return absl::OkStatus();
}

absl::Status Check(const NodeOptions& options) {
  NIBBLE_RETURN_IF_ERROR(
      Validate(options.shape, options.identity, options.security, options.heartbeat));
  NIBBLE_RETURN_IF_ERROR(CheckCertificates(options.security));
  if (options.node < 1 || options.node >= options.shape.num_nodes) {
    return InvalidArgument("node number {}: nodes that join are numbered 1 to {}", options.node,
                           options.shape.num_nodes - 1);
  }
  if (options.head_port < 1 || options.head_port > 65535) {
    return InvalidArgument("port {} of the head: wanted are 1 to 65535", options.head_port);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunNode(NodeOptions options, const std::stop_token& stop) {
  NIBBLE_RETURN_IF_ERROR(Check(options));
  options.local.first_rank = options.node * options.shape.ranks_per_node;
  options.local.num_ranks = options.shape.ranks_per_node;
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<LocalRanks> ranks, LocalRanks::Create(options.local));
  Relay relay(std::move(ranks), options.local.first_rank, options.link_lost_frame);
  LimitGrpcLog();
  const absl::Status status = Membership(&options, &relay).Run(stop);
  relay.Stop();
  return status;
}

}  // namespace nibble::comm
