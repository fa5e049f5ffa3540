// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/rank_membership.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "comm/group_address.h"

namespace nibble::engine {
namespace {

// Names of older generations are not looked for: every generation is cleaned up after by the next.
constexpr uint64_t kMaxGenerationsToClean = 1000;

// What a rank's address joins.
constexpr size_t kOfGroup = 0;
constexpr size_t kOfLinks = 1;  // empty with one stage
constexpr size_t kNumAddresses = 2;

}  // namespace

absl::StatusOr<std::string> RankMembership::Prepare(const PreparePayload& payload) {
  Leave();
  const comm::GroupPlace& place = payload.place;
  uint64_t stale = std::max(payload.clean_from,
                            place.generation - std::min(place.generation, kMaxGenerationsToClean));
  for (; stale < place.generation; ++stale) comm::RemoveLeftovers(place.group_id, stale);
  NIBBLE_RETURN_IF_ERROR(comm::CheckPlace(place));
  const comm::GroupPlace stage = comm::StageOf(place, payload.num_stages);
  NIBBLE_ASSIGN_OR_RETURN(auto member, comm::GroupMember::Prepare(stage));
  std::string addresses[kNumAddresses];
  addresses[kOfGroup] = member->address();
  std::unique_ptr<comm::StageLinkMember> link_member;
  if (payload.num_stages > 1) {
    NIBBLE_ASSIGN_OR_RETURN(link_member, comm::StageLinkMember::Prepare(place, payload.num_stages));
    addresses[kOfLinks] = link_member->address();
  }
  group_id_ = place.group_id;
  stage_size_ = stage.size();
  first_rank_ = stage.first_rank;
  size_ = place.size();
  const std::lock_guard lock(mutex_);
  generation_ = place.generation;
  member_ = std::move(member);
  link_member_ = std::move(link_member);
  if (aborted_generation_ >= generation_) AbortPartsLocked(abort_reason_);
  return comm::JoinAddresses(addresses);
}

absl::StatusOr<RankMembership::Joined> RankMembership::Connect(const ConnectPayload& payload,
                                                               ThreadPool* pool) {
  if (member_ == nullptr || payload.generation != generation_) {
    return absl::AbortedError(fmt::format("generation {} is to be connected, {} was prepared last",
                                          payload.generation, generation_));
  }
  if (payload.addresses.size() != static_cast<size_t>(size_)) {
    return InvalidArgument("{} addresses for {} ranks", payload.addresses.size(), size_);
  }
  std::vector<std::string> of_stage;  // by rank of the stage
  std::vector<std::string> of_links;  // by rank of all stages
  for (int rank = 0; rank < size_; ++rank) {
    auto both = comm::SplitAddresses(payload.addresses[static_cast<size_t>(rank)], kNumAddresses);
    if (!both.ok()) return Annotate(both.status(), fmt::format("rank {}", rank));
    if (rank >= first_rank_ && rank < first_rank_ + stage_size_) {
      of_stage.push_back(std::move((*both)[kOfGroup]));
    }
    of_links.push_back(std::move((*both)[kOfLinks]));
  }
  // First, while all ranks are at it: to form a group may take one stage seconds of measuring and
  // its neighbour none, who would then wait for it no longer than a connection may take.
  if (link_member_ != nullptr) NIBBLE_RETURN_IF_ERROR(ConnectLinks(payload, of_links));
  NIBBLE_ASSIGN_OR_RETURN(auto communicator, ConnectGroup(payload, of_stage, pool));
  return Joined{.communicator = communicator, .link = link_.get()};
}

absl::Status RankMembership::ConnectLinks(const ConnectPayload& payload,
                                          std::span<const std::string> addresses) {
  NIBBLE_ASSIGN_OR_RETURN(
      auto link, link_member_->Connect(addresses, {.connect_timeout = payload.connect_timeout,
                                                   .message_timeout = payload.message_timeout}));
  std::unique_ptr<comm::StageLinkMember> used_up;
  const std::lock_guard lock(mutex_);
  used_up = std::move(link_member_);
  link_ = std::move(link);
  if (aborted_generation_ >= generation_) AbortPartsLocked(abort_reason_);
  return absl::OkStatus();
}

absl::StatusOr<comm::Communicator*> RankMembership::ConnectGroup(
    const ConnectPayload& payload, std::span<const std::string> addresses, ThreadPool* pool) {
  comm::ConnectOptions options{.all_reduce = payload.all_reduce,
                               .row_size = payload.row_size,
                               .connect_timeout = payload.connect_timeout,
                               .operation_timeout = payload.operation_timeout};
  if (!payload.policy.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(options.policy, comm::ParsePolicy(payload.policy));
  }
  auto connected = member_->Connect(addresses, options, pool);
  std::unique_ptr<comm::GroupMember> used_up;
  const std::lock_guard lock(mutex_);
  used_up = std::move(member_);
  if (!connected.ok()) return connected.status();
  communicator_ = *std::move(connected);
  if (aborted_generation_ >= generation_) AbortPartsLocked(abort_reason_);
  return communicator_.get();
}

void RankMembership::Leave() {
  std::unique_ptr<comm::GroupMember> member;
  std::unique_ptr<comm::StageLinkMember> link_member;
  std::unique_ptr<comm::Communicator> communicator;
  std::unique_ptr<comm::StageLink> link;
  {
    const std::lock_guard lock(mutex_);
    member = std::move(member_);
    link_member = std::move(link_member_);
    communicator = std::move(communicator_);
    link = std::move(link_);
  }
  if (member == nullptr && link_member == nullptr && communicator == nullptr && link == nullptr) {
    return;
  }
  member.reset();
  link_member.reset();
  communicator.reset();
  link.reset();
  comm::RemoveLeftovers(group_id_, generation_);
}

void RankMembership::Abort(uint64_t generation, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  AbortLocked(generation, reason);
}

void RankMembership::AbortCurrent(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  AbortLocked(generation_, reason);
}

void RankMembership::AbortLocked(uint64_t generation, const std::string& reason) {
  if (generation > aborted_generation_) {
    aborted_generation_ = generation;
    abort_reason_ = reason;
  }
  if (generation_ > generation) return;
  AbortPartsLocked(reason);
}

void RankMembership::AbortPartsLocked(const std::string& reason) {
  if (member_ != nullptr) member_->Abort(reason);
  if (link_member_ != nullptr) link_member_->Abort(reason);
  if (communicator_ != nullptr) communicator_->Abort(reason);
  if (link_ != nullptr) link_->Abort(reason);
}

}  // namespace nibble::engine
