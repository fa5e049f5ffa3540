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

// Calls that have not joined. Each may last for the heartbeat timeout and come again at once, so a
// host that has no business here gets only so many; nodes need one for some milliseconds.
constexpr size_t kMaxStrangersOfHost = 8;
constexpr size_t kMaxStrangers = 256;
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
    if (node->link != nullptr) node->link->Push(StartRanksMessage());
  }
}

void Members::Stop() {
  std::vector<std::shared_ptr<HeadLink>> links;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    links = links_;
  }
  // A call to the observer that had begun ends.
  for (const auto& node : nodes_) const std::lock_guard deliver(node->deliver);
  for (const auto& link : links) {
    if (!link->is_member()) {
      link->Close(Unavailable("the head ends"), /*cut=*/false);
      continue;
    }
    v1::HeadMessage message;
    message.mutable_goodbye()->set_reason("the server ends");
    link->Push(std::move(message));
  }
}

void Members::WaitUntilGone() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return num_links_ == 0; });
}

absl::Status Members::WaitForAll(Deadline deadline, const std::stop_token& stop) {
  std::vector<int> missing;
  const auto all_there = [&] {
    missing.clear();
    for (int node = 1; node < shape_.num_nodes; ++node) {
      if (nodes_[IndexOf(node)]->link == nullptr) missing.push_back(node);
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

std::shared_ptr<HeadLink> Members::LinkOf(int node) const {
  const std::lock_guard lock(mutex_);
  return nodes_[IndexOf(node)]->link;
}

void Members::Look(std::chrono::milliseconds timeout, std::chrono::steady_clock::duration stall) {
  std::vector<std::shared_ptr<HeadLink>> links;
  {
    const std::lock_guard lock(mutex_);
    links = links_;
  }
  for (const auto& link : links) {
    link->Forgive(stall);
    if (HeadLink::Clock::now() - link->last_heard() >= timeout) {
      link->Close(absl::DeadlineExceededError(
                      fmt::format("nothing was heard from it for {} ms", timeout.count())),
                  /*cut=*/true);
    } else if (link->is_member()) {
      link->Beat();
    }
  }
}

std::chrono::steady_clock::time_point Members::NextSilence(
    std::chrono::milliseconds timeout) const {
  auto next = std::chrono::steady_clock::time_point::max();
  const std::lock_guard lock(mutex_);
  for (const auto& link : links_) next = std::min(next, link->last_heard() + timeout);
  return next;
}

HeadLink* Members::BeginLink(grpc::CallbackServerContext* context, const JoinChecks* checks) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return nullptr;
  auto link = std::make_shared<HeadLink>(context, checks, this);
  size_t strangers = 0;
  size_t of_host = 0;
  for (const auto& open : links_) {
    if (open->is_member()) continue;
    ++strangers;
    if (open->peer_host() == link->peer_host()) ++of_host;
  }
  if (strangers >= kMaxStrangers || of_host >= kMaxStrangersOfHost) {
    refusals_.Write(fmt::format(
        "cluster: a node at {} was refused: {} calls that have not joined, {} of them of its host",
        link->peer(), strangers, of_host));
    return nullptr;
  }
  ++num_links_;
  links_.push_back(link);
  link->Begin();
  return link.get();
}

absl::Status Members::OnJoin(const std::shared_ptr<HeadLink>& link, const v1::JoinRequest& join) {
  const int node = link->node();
  const std::lock_guard lock(mutex_);
  if (stopping_) return Unavailable("the head ends");
  // Closed while its JoinRequest was looked at: OnClosed has been here, and nobody would take such
  // a member away.
  if (std::find(links_.begin(), links_.end(), link) == links_.end()) {
    return Unavailable("its call has ended");
  }
  Node& member = *nodes_[IndexOf(node)];
  if (member.link != nullptr) {
    return absl::AlreadyExistsError(
        fmt::format("node {} is a member already, at {}", node, member.link->peer()));
  }
  log::Info("cluster: node {} joined from {}, its ranks bind {}", node, link->peer(),
            join.bind_address());
  member.link = link;
  member.address = join.bind_address();
  link->Welcome(run_id_);
  if (observer_ != nullptr) link->Push(StartRanksMessage());
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status Members::OnMessage(HeadLink* link, v1::NodeMessage* message) {
  if (message->has_heartbeat()) return absl::OkStatus();
  const int node = link->node();
  const std::lock_guard deliver(nodes_[IndexOf(node)]->deliver);
  if (!Delivers(node, link)) return absl::OkStatus();  // it is about to end
  return Deliver(node, message);
}

// REQUIRES that the node's deliver is held.
bool Members::Delivers(int node, const HeadLink* link) const {
  const std::lock_guard lock(mutex_);
  return !stopping_ && observer_ != nullptr && nodes_[IndexOf(node)]->link.get() == link;
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
      const uint32_t reason = message->rank_down().reason();
      if (!rank->up) return InvalidArgument("rank {} is down twice", number);
      if (reason > kLastLossReason) {
        return InvalidArgument("rank {} is down for reason {}, the last one is {}", number, reason,
                               kLastLossReason);
      }
      rank->up = false;
      observer_->OnDown(number, static_cast<LossReason>(reason),
                        fmt::format("{}: {}", Describe(node),
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

void Members::OnClosed(HeadLink* link, const absl::Status& why) {
  const std::string text(why.message());
  bool is_member = false;
  {
    const std::lock_guard lock(mutex_);
    // From here on OnJoin refuses it, so that what is found here stays true.
    std::erase_if(links_, [&](const auto& held) { return held.get() == link; });
    is_member = link->is_member();
  }
  const int node = link->node();
  if (!is_member) {
    const std::string who = node == 0 ? "a node" : fmt::format("node {}", node);
    refusals_.Write(fmt::format("cluster: {} at {} was refused: {}", who, link->peer(), text));
    return;
  }
  Node& member = *nodes_[IndexOf(node)];
  const std::lock_guard deliver(member.deliver);
  bool tells = false;
  {
    const std::lock_guard lock(mutex_);
    member.link = nullptr;
    tells = observer_ != nullptr && !stopping_;
    if (!stopping_) log::Warning("cluster: node {} at {}: {}", node, link->peer(), text);
  }
  if (tells) TakeDown(node, text);
}

// REQUIRES that the node's deliver is held.
void Members::TakeDown(int node, const std::string& why) {
  int number = node * shape_.ranks_per_node;
  for (Rank& rank : nodes_[IndexOf(node)]->ranks) {
    if (std::exchange(rank.up, false)) {
      observer_->OnDown(number, LossReason::kUnreachable,
                        fmt::format("rank {} on {}: {}", number, Describe(node), why));
    }
    ++number;
  }
}

void Members::OnGone() {
  const std::lock_guard lock(mutex_);
  --num_links_;
  changed_.notify_all();
}

v1::HeadMessage Members::StartRanksMessage() {
  v1::HeadMessage message;
  message.mutable_start_ranks();
  return message;
}

}  // namespace nibble::comm
