// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/rank_membership.h"

#include <algorithm>
#include <utility>

namespace nibble::engine {
namespace {

// Names of older generations are not looked for: every generation is cleaned up after by the next.
constexpr uint64_t kMaxGenerationsToClean = 1000;

}  // namespace

absl::StatusOr<std::string> RankMembership::Prepare(const PreparePayload& payload) {
  Leave();
  const comm::GroupPlace& place = payload.place;
  uint64_t stale = std::max(payload.clean_from,
                            place.generation - std::min(place.generation, kMaxGenerationsToClean));
  for (; stale < place.generation; ++stale) comm::RemoveLeftovers(place.group_id, stale);
  NIBBLE_ASSIGN_OR_RETURN(auto member, comm::GroupMember::Prepare(place));
  std::string address = member->address();
  group_id_ = place.group_id;
  const std::lock_guard lock(mutex_);
  generation_ = place.generation;
  member_ = std::move(member);
  if (aborted_generation_ >= generation_) member_->Abort(abort_reason_);
  return address;
}

absl::StatusOr<comm::Communicator*> RankMembership::Connect(const ConnectPayload& payload,
                                                            ThreadPool* pool) {
  if (member_ == nullptr || payload.generation != generation_) {
    return absl::AbortedError(fmt::format("generation {} is to be connected, {} was prepared last",
                                          payload.generation, generation_));
  }
  comm::ConnectOptions options{.all_reduce = payload.all_reduce,
                               .row_size = payload.row_size,
                               .connect_timeout = payload.connect_timeout,
                               .operation_timeout = payload.operation_timeout};
  if (!payload.policy.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(options.policy, comm::ParsePolicy(payload.policy));
  }
  auto connected = member_->Connect(payload.addresses, options, pool);
  std::unique_ptr<comm::GroupMember> used_up;
  const std::lock_guard lock(mutex_);
  used_up = std::move(member_);
  if (!connected.ok()) return connected.status();
  communicator_ = *std::move(connected);
  if (aborted_generation_ >= generation_) communicator_->Abort(abort_reason_);
  return communicator_.get();
}

void RankMembership::Leave() {
  std::unique_ptr<comm::GroupMember> member;
  std::unique_ptr<comm::Communicator> communicator;
  {
    const std::lock_guard lock(mutex_);
    member = std::move(member_);
    communicator = std::move(communicator_);
  }
  if (member == nullptr && communicator == nullptr) return;
  member.reset();
  communicator.reset();
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
  if (member_ != nullptr) member_->Abort(reason);
  if (communicator_ != nullptr) communicator_->Abort(reason);
}

}  // namespace nibble::engine
