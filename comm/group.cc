// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/group.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/cpu_features.h"
#include "base/log.h"
#include "comm/choose_policy.h"
#include "comm/group_address.h"
#include "comm/group_communicator.h"
#include "comm/measure_policy.h"
#include "comm/shm/segment.h"
#include "comm/tcp/tcp_transport.h"

namespace nibble::comm {
namespace {

using Mode = AllReduceOptions::Mode;

// Unique on these hosts.
std::string FullId(const GroupPlace& place) {
  return place.part.empty() ? place.group_id : fmt::format("{}.{}", place.group_id, place.part);
}

int NumHosts(const GroupPlace& place) {
  int count = 1;
  for (size_t r = 1; r < place.node_of_rank.size(); ++r) {
    if (place.node_of_rank[r] != place.node_of_rank[r - 1]) ++count;
  }
  return count;
}

// How the ranks that `place` names will meet; Connect hands it on to the communicator.
class Member final : public GroupMember {
 public:
  Member(GroupPlace place, Isa isa) : place_(std::move(place)), isa_(isa) {}

  absl::Status Prepare() {
    const auto me = place_.node_of_rank.begin() + place_.rank;
    const auto [first, last] =
        std::equal_range(place_.node_of_rank.begin(), place_.node_of_rank.end(), *me);
    if (last - first > 1) {
      const int first_rank = static_cast<int>(first - place_.node_of_rank.begin());
      NIBBLE_ASSIGN_OR_RETURN(host_,
                              ShmSegment::Prepare({.rank = place_.rank - first_rank,
                                                   .num_ranks = static_cast<int>(last - first),
                                                   .first_rank = place_.first_rank + first_rank,
                                                   .node = *me,
                                                   .group_id = place_.group_id,
                                                   .generation = place_.generation,
                                                   .part = place_.part}));
    }
    if (NumHosts(place_) > 1) {
      NIBBLE_ASSIGN_OR_RETURN(network_, TcpTransport::Open({.rank = place_.rank,
                                                            .size = place_.size(),
                                                            .first_rank = place_.first_rank,
                                                            .group_id = FullId(place_),
                                                            .generation = place_.generation,
                                                            .bind_address = place_.bind_address}));
    }
    address_ = Serialize(GroupAddress{.rank = static_cast<uint32_t>(place_.rank),
                                      .size = static_cast<uint32_t>(place_.size()),
                                      .generation = place_.generation,
                                      .group_id = FullId(place_),
                                      .network = network_ == nullptr ? "" : network_->address()});
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  absl::StatusOr<std::unique_ptr<Communicator>> Connect(std::span<const std::string> addresses,
                                                        const ConnectOptions& options,
                                                        ThreadPool* pool) override {
    const Deadline deadline = Deadline::After(options.connect_timeout);
    NIBBLE_RETURN_IF_ERROR(Validate(options.all_reduce.codec));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> network, NetworkAddresses(addresses));
    if (host_ != nullptr) NIBBLE_RETURN_IF_ERROR(host_->Connect(deadline));
    if (network_ != nullptr) NIBBLE_RETURN_IF_ERROR(network_->Connect(network, deadline));
    std::unique_ptr<GroupCommunicator> communicator = MakeCommunicator(options);
    const absl::Status status = SetPolicy(options, communicator.get(), pool);
    const std::lock_guard<std::mutex> lock(mutex_);
    communicator_ = nullptr;
    NIBBLE_RETURN_IF_ERROR(status);
    return communicator;
  }

  void Abort(const std::string& reason) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (communicator_ != nullptr) communicator_->Abort(reason);
    if (host_ != nullptr) host_->Abort(reason);
    if (network_ != nullptr) network_->Abort(reason);
  }

 private:
  // Of all ranks; empty when there is no network.
  absl::StatusOr<std::vector<std::string>> NetworkAddresses(
      std::span<const std::string> addresses) const {
    if (addresses.size() != place_.node_of_rank.size()) {
      return InvalidArgument("{} addresses for a group of {} ranks", addresses.size(),
                             place_.size());
    }
    std::vector<std::string> network;
    for (uint32_t r = 0; r < addresses.size(); ++r) {
      absl::StatusOr<std::string> own =
          CheckGroupAddress(addresses[r], {.rank = r,
                                           .size = static_cast<uint32_t>(addresses.size()),
                                           .generation = place_.generation,
                                           .group_id = FullId(place_),
                                           .network = {}});
      if (!own.ok()) {
        return Annotate(own.status(),
                        fmt::format("rank {}", place_.first_rank + static_cast<int>(r)));
      }
      network.push_back(*std::move(own));
    }
    return network;
  }

  std::unique_ptr<GroupCommunicator> MakeCommunicator(const ConnectOptions& options) {
    const std::lock_guard<std::mutex> lock(mutex_);
    GroupLinks links = {.node_of_rank = place_.node_of_rank,
                        .host = std::move(host_),
                        .network = std::move(network_)};
    auto communicator = std::make_unique<GroupCommunicator>(
        place_.rank, std::move(links),
        GroupSettings{
            .policy = UnmeasuredPolicy(options.all_reduce, NumHosts(place_), place_.size()),
            .operation_timeout = options.operation_timeout,
            .first_rank = place_.first_rank},
        isa_);
    communicator_ = communicator.get();
    return communicator;
  }

  absl::Status SetPolicy(const ConnectOptions& options, GroupCommunicator* communicator,
                         ThreadPool* pool) const {
    if (options.all_reduce.mode == Mode::kAuto && NumHosts(place_) > 1) {
      AllReducePolicy policy = options.policy;
      if (policy.choices.empty()) {
        const MeasureOptions measure = {.codec = options.all_reduce.codec,
                                        .row_size = options.row_size};
        NIBBLE_ASSIGN_OR_RETURN(policy, MeasurePolicy(measure, communicator, pool));
      }
      NIBBLE_RETURN_IF_ERROR(policy.Validate());
      communicator->SetPolicy(std::move(policy));
    }
    // Once: a driver hands what was chosen to later generations.
    if (place_.rank == 0 && place_.size() > 1 && options.policy.choices.empty()) {
      const std::string hosts =
          NumHosts(place_) > 1 ? fmt::format(" on {} hosts", NumHosts(place_)) : "";
      const std::string from =
          place_.part.empty() ? "" : fmt::format(" from rank {}", place_.first_rank);
      log::Info("all-reduce of {} ranks{}{}: {}", place_.size(), from, hosts,
                ToString(communicator->policy()));
    }
    return absl::OkStatus();
  }

  const GroupPlace place_;
  const Isa isa_;
  std::string address_;
  // Connect alone changes what follows, under the mutex, which guards it against Abort.
  std::mutex mutex_;
  std::unique_ptr<ShmSegment> host_;           // null when this rank is alone on its host
  std::unique_ptr<TcpTransport> network_;      // null when all are on one host
  GroupCommunicator* communicator_ = nullptr;  // while it is measured
};

}  // namespace

absl::Status CheckPlace(const GroupPlace& place) {
  if (place.node_of_rank.empty()) return InvalidArgument("a group without ranks");
  if (place.rank < 0 || place.rank >= place.size()) {
    return InvalidArgument("rank {} of a group of {}", place.rank, place.size());
  }
  for (size_t r = 0; r < place.node_of_rank.size(); ++r) {
    const int least = r == 0 ? 0 : place.node_of_rank[r - 1];
    if (place.node_of_rank[r] >= least) continue;
    return InvalidArgument(
        "rank {} is on node {}, ranks must be in the order of nodes (at least {})", r,
        place.node_of_rank[r], least);
  }
  if (place.first_rank < 0) return InvalidArgument("first rank {} is negative", place.first_rank);
  if (!place.part.empty()) NIBBLE_RETURN_IF_ERROR(CheckGroupId(place.part));
  return CheckGroupId(place.group_id);
}

GroupPlace StageOf(const GroupPlace& place, int num_stages) {
  if (num_stages == 1) return place;
  const int stage_size = place.size() / num_stages;
  const int stage = place.rank / stage_size;
  GroupPlace own = place;
  own.rank = place.rank % stage_size;
  own.first_rank = stage * stage_size;
  own.part = fmt::format("stage{}", stage);
  const auto begin = place.node_of_rank.begin() + own.first_rank;
  own.node_of_rank.assign(begin, begin + stage_size);
  return own;
}

absl::StatusOr<std::unique_ptr<GroupMember>> GroupMember::Prepare(const GroupPlace& place) {
  NIBBLE_RETURN_IF_ERROR(CheckPlace(place));
  NIBBLE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  auto member = std::make_unique<Member>(place, isa);
  NIBBLE_RETURN_IF_ERROR(member->Prepare());
  return member;
}

void RemoveLeftovers(const std::string& group_id, uint64_t generation) {
  RemoveSegmentNames(group_id, generation);
}

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeThreadGroup(
    int size, const AllReduceOptions& options) {
  if (size < 1 || size > shm::kMaxRanks) {
    return InvalidArgument("a group of {} ranks, the limit is 1 to {}", size, shm::kMaxRanks);
  }
  NIBBLE_RETURN_IF_ERROR(Validate(options.codec));
  NIBBLE_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa());
  std::vector<std::unique_ptr<ShmSegment>> segments(static_cast<size_t>(size));
  if (size > 1) {
    NIBBLE_ASSIGN_OR_RETURN(segments, ShmSegment::MakeForThreads(size));
  }
  std::vector<std::unique_ptr<Communicator>> group;
  for (int rank = 0; rank < size; ++rank) {
    GroupLinks links = {.node_of_rank = std::vector<int>(static_cast<size_t>(size)),
                        .host = std::move(segments[static_cast<size_t>(rank)])};
    group.push_back(std::make_unique<GroupCommunicator>(
        rank, std::move(links), GroupSettings{UnmeasuredPolicy(options, 1, size)}, isa));
  }
  return group;
}

}  // namespace nibble::comm
