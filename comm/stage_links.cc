// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/stage_links.h"

#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"
#include "comm/group_address.h"
#include "comm/link_end.h"
#include "comm/link_receiver.h"
#include "comm/link_sender.h"
#include "comm/shm/shm_transport.h"

namespace nibble::comm {
namespace {

// One rank's links to both sides; the first error breaks both.
class NeighbourLinks final : public StageLink {
 public:
  NeighbourLinks(int rank, std::unique_ptr<LinkReceiver> from_previous,
                 std::unique_ptr<LinkSender> to_next)
      : rank_(rank), from_previous_(std::move(from_previous)), to_next_(std::move(to_next)) {}

  absl::Status Send(const float* data, int64_t num_values) override {
    NIBBLE_CHECK(to_next_ != nullptr && num_values >= 0);
    if (!broken_.ok()) return broken_;
    return End(to_next_->Send(data, num_values));
  }
  absl::Status Receive(float* data, int64_t num_values) override {
    NIBBLE_CHECK(from_previous_ != nullptr && num_values >= 0);
    if (!broken_.ok()) return broken_;
    return End(from_previous_->Receive(data, num_values));
  }
  void Abort(const std::string& reason) override {
    if (from_previous_ != nullptr) from_previous_->Abort(reason);
    if (to_next_ != nullptr) to_next_->Abort(reason);
  }

 private:
  absl::Status End(const absl::Status& status) {
    if (status.ok()) return status;
    broken_ = status;
    Abort(fmt::format("rank {}: {}", rank_, std::string(status.message())));
    return status;
  }

  const int rank_;                                     // of all stages
  const std::unique_ptr<LinkReceiver> from_previous_;  // null on the first stage
  const std::unique_ptr<LinkSender> to_next_;          // null on the last
  absl::Status broken_;
};

// What a rank's address joins: those of its two ends, either of which may be empty.
constexpr size_t kFromPrevious = 0;
constexpr size_t kToNext = 1;
constexpr size_t kNumEnds = 2;

class Member final : public StageLinkMember {
 public:
  absl::Status Open(const GroupPlace& place, int num_stages) {
    rank_ = place.rank;
    size_ = static_cast<size_t>(place.size());
    const int stage_size = place.size() / num_stages;
    std::vector<std::string> ends(kNumEnds);
    if (place.rank >= stage_size) {
      NIBBLE_ASSIGN_OR_RETURN(from_previous_,
                              LinkEnd::Prepare(place, place.rank - stage_size, place.rank));
      ends[kFromPrevious] = from_previous_->address();
    }
    if (place.rank + stage_size < place.size()) {
      NIBBLE_ASSIGN_OR_RETURN(to_next_,
                              LinkEnd::Prepare(place, place.rank, place.rank + stage_size));
      ends[kToNext] = to_next_->address();
    }
    address_ = JoinAddresses(ends);
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  absl::StatusOr<std::unique_ptr<StageLink>> Connect(std::span<const std::string> addresses,
                                                     const StageLinkOptions& options) override {
    if (addresses.size() != size_) {
      return InvalidArgument("{} addresses for the links of {} ranks", addresses.size(), size_);
    }
    const Deadline deadline = Deadline::After(options.connect_timeout);
    // Every rank connects to the stage before it first: the first stage's are there at once, and
    // with them the second's.
    std::unique_ptr<LinkReceiver> receiver;
    std::unique_ptr<LinkSender> sender;
    if (from_previous_ != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(auto connection,
                              ConnectEnd(from_previous_.get(), addresses, deadline));
      NIBBLE_ASSIGN_OR_RETURN(receiver,
                              LinkReceiver::Create(std::move(connection), options.message_timeout));
    }
    if (to_next_ != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(auto connection, ConnectEnd(to_next_.get(), addresses, deadline));
      NIBBLE_ASSIGN_OR_RETURN(sender,
                              LinkSender::Create(std::move(connection), options.message_timeout));
    }
    return std::make_unique<NeighbourLinks>(rank_, std::move(receiver), std::move(sender));
  }

  void Abort(const std::string& reason) override {
    if (from_previous_ != nullptr) from_previous_->Abort(reason);
    if (to_next_ != nullptr) to_next_->Abort(reason);
  }

 private:
  static absl::StatusOr<LinkConnection> ConnectEnd(LinkEnd* end,
                                                   std::span<const std::string> addresses,
                                                   Deadline deadline) {
    const auto peer = static_cast<size_t>(end->peer());
    const auto ends = SplitAddresses(addresses[peer], kNumEnds);
    if (!ends.ok()) return Annotate(ends.status(), fmt::format("rank {}", peer));
    return end->Connect((*ends)[end->is_sender() ? kFromPrevious : kToNext], deadline);
  }

  int rank_ = 0;
  size_t size_ = 0;  // of all ranks
  // Null where there is no neighbour.
  std::unique_ptr<LinkEnd> from_previous_;
  std::unique_ptr<LinkEnd> to_next_;
  std::string address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StageLinkMember>> StageLinkMember::Prepare(const GroupPlace& place,
                                                                          int num_stages) {
  NIBBLE_RETURN_IF_ERROR(CheckPlace(place));
  NIBBLE_CHECK(num_stages >= 1 && place.size() % num_stages == 0);
  auto member = std::make_unique<Member>();
  NIBBLE_RETURN_IF_ERROR(member->Open(place, num_stages));
  return member;
}

absl::StatusOr<std::vector<std::unique_ptr<StageLink>>> MakeThreadStageLinks(int num_stages,
                                                                             int ranks_per_stage) {
  if (num_stages < 1 || ranks_per_stage < 1) {
    return InvalidArgument("links of {} stages of {} ranks, the least is 1", num_stages,
                           ranks_per_stage);
  }
  const std::chrono::nanoseconds timeout = StageLinkOptions{}.message_timeout;
  const int size = num_stages * ranks_per_stage;
  std::vector<std::unique_ptr<LinkReceiver>> receivers(static_cast<size_t>(size));
  std::vector<std::unique_ptr<LinkSender>> senders(static_cast<size_t>(size));
  for (int sender = 0; sender + ranks_per_stage < size; ++sender) {
    const int receiver = sender + ranks_per_stage;
    NIBBLE_ASSIGN_OR_RETURN(auto ends, ShmSegment::MakeForThreads({.num_ranks = 2,
                                                                   .first_rank = sender,
                                                                   .rank_stride = ranks_per_stage,
                                                                   .group_id = "threads",
                                                                   .messages_only = true}));
    std::vector<LinkConnection> connections;
    for (auto& end : ends) {
      LinkConnection connection{.segment = std::move(end)};
      connection.transport = std::make_unique<ShmTransport>(connection.segment.get());
      connections.push_back(std::move(connection));
    }
    connections[0].peer_name = fmt::format("rank {}", receiver);
    connections[1].peer_name = fmt::format("rank {}", sender);
    NIBBLE_ASSIGN_OR_RETURN(senders[static_cast<size_t>(sender)],
                            LinkSender::Create(std::move(connections[0]), timeout));
    NIBBLE_ASSIGN_OR_RETURN(receivers[static_cast<size_t>(receiver)],
                            LinkReceiver::Create(std::move(connections[1]), timeout));
  }
  std::vector<std::unique_ptr<StageLink>> links;
  for (int rank = 0; rank < size; ++rank) {
    const auto at = static_cast<size_t>(rank);
    links.push_back(
        std::make_unique<NeighbourLinks>(rank, std::move(receivers[at]), std::move(senders[at])));
  }
  return links;
}

}  // namespace nibble::comm
