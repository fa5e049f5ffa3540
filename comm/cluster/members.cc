// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/members.h"

#include <algorithm>
#include <utility>

#include "fmt/ranges.h"

#include "base/log.h"
#include "comm/cluster/addresses.h"

namespace nibble::comm {
namespace {

// Calls that have not joined, of all the world.
constexpr size_t kMaxStrangers = 64;
constexpr size_t kMaxWhyBytes = 4096;

size_t IndexOf(int node) { return static_cast<size_t>(node - 1); }

}  // namespace

Members::Members(const ClusterShape& shape, std::string run_id)
    : shape_(shape), run_id_(std::move(run_id)) {
  for (int node = 1; node < shape.num_nodes; ++node) {
    nodes_.push_back(std::make_unique<Node>());
    nodes_.back()->ranks.resize(static_cast<size_t>(shape.ranks_per_node));
  }
}

void Members::Start(RankHub::Observer* observer) {
  const std::lock_guard lock(mutex_);
  observer_ = observer;
  for (const auto& node : nodes_) {
    if (node->session != nullptr) node->session->Push(StartRanksMessage());
  }
}

void Members::Stop() {
  std::vector<std::shared_ptr<HeadSession>> sessions;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    sessions = sessions_;
  }
  // A call to the observer that had begun ends.
  for (const auto& node : nodes_) const std::lock_guard deliver(node->deliver);
  for (const auto& session : sessions) {
    if (!session->is_member()) {
      session->Close(Unavailable("the head ends"), /*cut=*/false);
      continue;
    }
    v1::HeadMessage message;
    message.mutable_goodbye()->set_reason("the server ends");
    session->Push(std::move(message));
  }
}

void Members::WaitUntilGone() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return num_sessions_ == 0; });
}

absl::Status Members::WaitForAll(Deadline deadline, const std::stop_token& stop) {
  std::vector<int> missing;
  const auto all_there = [&] {
    missing.clear();
    for (int node = 1; node < shape_.num_nodes; ++node) {
      if (nodes_[IndexOf(node)]->session == nullptr) missing.push_back(node);
    }
    return missing.empty();
  };
  std::unique_lock lock(mutex_);
  if (changed_.wait_until(lock, stop, deadline.at(), all_there)) return absl::OkStatus();
  const std::string text =
      fmt::format("node{} {} of {} did not join", missing.size() == 1 ? "" : "s",
                  fmt::join(missing, ", "), shape_.num_nodes);
  return stop.stop_requested() ? absl::CancelledError(text) : absl::DeadlineExceededError(text);
}

std::string Members::AddressOf(int node) const {
  const std::lock_guard lock(mutex_);
  return nodes_[IndexOf(node)]->address;
}

std::string Members::Describe(int node) const {
  const std::string address = AddressOf(node);
  return fmt::format("node {} ({})", node, address.empty() ? "has not joined yet" : address);
}

std::shared_ptr<HeadSession> Members::SessionOf(int node) const {
  const std::lock_guard lock(mutex_);
  return nodes_[IndexOf(node)]->session;
}

void Members::Look(std::chrono::milliseconds timeout, std::chrono::steady_clock::duration stall) {
  std::vector<std::shared_ptr<HeadSession>> sessions;
  {
    const std::lock_guard lock(mutex_);
    sessions = sessions_;
  }
  for (const auto& session : sessions) {
    session->Forgive(stall);
    if (HeadSession::Clock::now() - session->last_heard() >= timeout) {
      session->Close(absl::DeadlineExceededError(
                         fmt::format("nothing was heard from it for {} ms", timeout.count())),
                     /*cut=*/true);
    } else if (session->is_member()) {
      session->Beat();
    }
  }
}

std::chrono::steady_clock::time_point Members::NextSilence(
    std::chrono::milliseconds timeout) const {
  auto next = std::chrono::steady_clock::time_point::max();
  const std::lock_guard lock(mutex_);
  for (const auto& session : sessions_) next = std::min(next, session->last_heard() + timeout);
  return next;
}

HeadSession* Members::BeginSession(grpc::CallbackServerContext* context,
                                   const SessionChecks* checks) {
  const std::lock_guard lock(mutex_);
  const auto strangers = std::count_if(sessions_.begin(), sessions_.end(),
                                       [](const auto& session) { return !session->is_member(); });
  if (stopping_ || static_cast<size_t>(strangers) >= kMaxStrangers) return nullptr;
  ++num_sessions_;
  std::shared_ptr<HeadSession> session = HeadSession::Begin(context, checks, this);
  sessions_.push_back(session);
  return session.get();
}

absl::Status Members::OnJoin(const std::shared_ptr<HeadSession>& session,
                             const v1::JoinRequest& join) {
  const int node = session->node();
  const std::lock_guard lock(mutex_);
  if (stopping_) return Unavailable("the head ends");
  Node& member = *nodes_[IndexOf(node)];
  if (member.session != nullptr) {
    return absl::AlreadyExistsError(
        fmt::format("node {} is a member already, at {}", node, member.session->peer()));
  }
  log::Info("cluster: node {} joined from {}, its ranks bind {}", node, session->peer(),
            join.bind_address());
  member.session = session;
  member.address = join.bind_address();
  session->Welcome(run_id_);
  if (observer_ != nullptr) session->Push(StartRanksMessage());
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status Members::OnMessage(HeadSession* session, v1::NodeMessage* message) {
  if (message->has_heartbeat()) return absl::OkStatus();
  const int node = session->node();
  const std::lock_guard deliver(nodes_[IndexOf(node)]->deliver);
  if (!Delivers(node, session)) return absl::OkStatus();  // it is about to end
  return Deliver(node, message);
}

// REQUIRES that the node's deliver is held.
bool Members::Delivers(int node, const HeadSession* session) const {
  const std::lock_guard lock(mutex_);
  return !stopping_ && observer_ != nullptr && nodes_[IndexOf(node)]->session.get() == session;
}

absl::Status Members::Deliver(int node, v1::NodeMessage* message) {
  switch (message->message_case()) {
    case v1::NodeMessage::kRankUp: {
      NIBBLE_ASSIGN_OR_RETURN(Rank * rank, RankOf(node, message->rank_up().rank()));
      const auto number = static_cast<int>(message->rank_up().rank());
      if (rank->up) return InvalidArgument("rank {} is up twice", number);
      rank->up = true;
      rank->joiner.Reset();
      observer_->OnUp(number);
      return absl::OkStatus();
    }
    case v1::NodeMessage::kRankDown: {
      NIBBLE_ASSIGN_OR_RETURN(Rank * rank, RankOf(node, message->rank_down().rank()));
      const auto number = static_cast<int>(message->rank_down().rank());
      if (!rank->up) return InvalidArgument("rank {} is down twice", number);
      rank->up = false;
      observer_->OnDown(number, fmt::format("{}: {}", Describe(node),
                                            message->rank_down().why().substr(0, kMaxWhyBytes)));
      return absl::OkStatus();
    }
    case v1::NodeMessage::kFrame:
      return DeliverFrame(node, message->mutable_frame());
    default:
      return InvalidArgument("a message of kind {} does not belong here",
                             static_cast<int>(message->message_case()));
  }
}

absl::Status Members::DeliverFrame(int node, v1::FramePart* part) {
  const uint32_t number = part->rank();
  NIBBLE_ASSIGN_OR_RETURN(Rank * rank, RankOf(node, number));
  if (!rank->up) return InvalidArgument("a frame of rank {}, which is down", number);
  Frame frame;
  NIBBLE_ASSIGN_OR_RETURN(const bool whole, rank->joiner.Add(std::move(*part), &frame));
  if (whole) observer_->OnFrame(static_cast<int>(number), std::move(frame));
  return absl::OkStatus();
}

absl::StatusOr<Members::Rank*> Members::RankOf(int node, uint32_t rank) {
  const auto per_node = static_cast<uint32_t>(shape_.ranks_per_node);
  const uint32_t first = static_cast<uint32_t>(node) * per_node;
  if (rank < first || rank - first >= per_node) {
    return InvalidArgument("rank {} is not one of node {}: it has {} to {}", rank, node, first,
                           first + per_node - 1);
  }
  return &nodes_[IndexOf(node)]->ranks[rank - first];
}

void Members::OnClosed(HeadSession* session, const absl::Status& why) {
  const std::string text(why.message());
  const int node = session->node();
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(sessions_, [&](const auto& held) { return held.get() == session; });
  }
  if (node == 0 || node >= shape_.num_nodes) {
    refusals_.Write(fmt::format("cluster: a node at {} was refused: {}", session->peer(), text));
    return;
  }
  Node& member = *nodes_[IndexOf(node)];
  const std::lock_guard deliver(member.deliver);
  bool tells = false;
  {
    const std::lock_guard lock(mutex_);
    if (member.session.get() != session) {
      refusals_.Write(
          fmt::format("cluster: node {} at {} was refused: {}", node, session->peer(), text));
      return;
    }
    member.session = nullptr;
    tells = observer_ != nullptr && !stopping_;
    if (!stopping_) log::Warning("cluster: node {} at {}: {}", node, session->peer(), text);
  }
  if (tells) TakeDown(node, text);
}

// REQUIRES that the node's deliver is held.
void Members::TakeDown(int node, const std::string& why) {
  int number = node * shape_.ranks_per_node;
  for (Rank& rank : nodes_[IndexOf(node)]->ranks) {
    if (std::exchange(rank.up, false)) {
      observer_->OnDown(number, fmt::format("rank {} on {}: {}", number, Describe(node), why));
    }
    ++number;
  }
}

void Members::OnGone() {
  const std::lock_guard lock(mutex_);
  --num_sessions_;
  changed_.notify_all();
}

v1::HeadMessage Members::StartRanksMessage() {
  v1::HeadMessage message;
  message.mutable_start_ranks();
  return message;
}

}  // namespace nibble::comm
