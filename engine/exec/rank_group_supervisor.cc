// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// RankGroup's supervisor: asks the ranks whether they live, forms generations, does what was
// decided. Who is lost and when a generation ends: rank_group_watch.cc.

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "engine/exec/rank_group_impl.h"

namespace nibble::engine {
namespace {

// Ranks that are ready connect at once or never: what is longer only makes an outage longer.
constexpr std::chrono::milliseconds kLeastConnectTimeout{5'000};
constexpr std::chrono::milliseconds kMostConnectTimeout{30'000};
constexpr std::chrono::milliseconds kOperationTimeout{60'000};

}  // namespace

void RankGroup::Impl::Supervise() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    woken_ = false;
    Decide(Now());
    Actions actions = std::exchange(actions_, {});
    lock.unlock();
    Perform(std::move(actions));
    lock.lock();
    clock_->WaitUntil(&lock, &work_, NextTurn(), [this] { return woken_ || stopping_; });
  }
}

std::chrono::milliseconds RankGroup::Impl::OperationTimeout() const {
  return std::max(kOperationTimeout, 2 * options_.rank_timeout);
}

std::chrono::milliseconds RankGroup::Impl::MessageTimeout() const {
  return std::max(OperationTimeout(), num_stages() * options_.patience.compute);
}

std::chrono::milliseconds RankGroup::Impl::ConnectTimeout() const {
  return std::clamp(2 * options_.rank_timeout, kLeastConnectTimeout, kMostConnectTimeout);
}

RankGroup::Impl::Clock::time_point RankGroup::Impl::NextTurn() const {
  Clock::time_point next = next_ping_;
  if (loads_are_old_ && next_loads_ > last_turn_) next = std::min(next, next_loads_);
  if (phase_ == Phase::kIdle && next_form_ > last_turn_) next = std::min(next, next_form_);
  if (phase_ == Phase::kPreparing || phase_ == Phase::kConnecting) {
    next = std::min(next, form_deadline_ + std::chrono::milliseconds(1));
  }
  for (const Rank& rank : ranks_) {
    if (rank.state == RankState::kDown || !rank.has_spoken) continue;
    next = std::min(next, rank.heard + options_.rank_timeout + std::chrono::milliseconds(1));
  }
  return next;
}

void RankGroup::Impl::Decide(Clock::time_point now) {
  ForgiveOwnStop(now);
  FindLostRanks(now);
  FindLateForming(now);
  FindDeadLinks(now);
  SendPings(now);
  AskForLoads(now);
  JudgeSuspicion();
  AbortBroken();
  if (!final_.ok()) return;
  Greet();
  Allocate();
  Form(now);
}

void RankGroup::Impl::SendPings(Clock::time_point now) {
  if (!ping_due_ && now < next_ping_) return;
  ping_due_ = false;
  next_ping_ = now + ping_interval_;
  SendToAll(MakeFrame(PingPayload{.number = ++ping_number_}));
}

void RankGroup::Impl::AbortBroken() {
  if (!std::exchange(abort_due_, false) || aborted_generation_ >= generation_) return;
  aborted_generation_ = generation_;
  SendToAll(
      MakeFrame(AbortPayload{.generation = generation_,
                             .reason = final_.ok() ? why_broken_ : std::string(final_.message())}));
}

void RankGroup::Impl::Greet() {
  for (int rank = 0; rank < size(); ++rank) {
    if (!std::exchange(at(rank).hello_due, false)) continue;
    actions_.greetings.push_back(rank);
    actions_.frames.emplace_back(rank, MakeFrame(RankMessage::kHello));
  }
}

void RankGroup::Impl::Allocate() {
  if (!sizes_) return;
  for (int rank = 0; rank < size(); ++rank) {
    if (at(rank).state != RankState::kLoaded) continue;
    at(rank).state = RankState::kAllocating;
    at(rank).allocating_since = Now();
    actions_.frames.emplace_back(rank, MakeFrame(AllocatePayload{.options = *sizes_}));
  }
}

void RankGroup::Impl::Form(Clock::time_point now) {
  if (std::exchange(connect_due_, false)) SendConnect();
  if (phase_ != Phase::kIdle || now < next_form_) return;
  const bool all_ready = std::ranges::all_of(ranks_, [this](const Rank& rank) {
    return rank.state == RankState::kReady && rank.last_pong >= wanted_pong_;
  });
  if (!all_ready) return;
  phase_ = Phase::kPreparing;
  ++generation_;
  form_deadline_ = now + options_.patience.prepare;
  SendPrepare();
}

void RankGroup::Impl::SendPrepare() {
  for (int rank = 0; rank < size(); ++rank) {
    at(rank).address.reset();
    at(rank).connected = false;
    const auto node = static_cast<size_t>(options_.node_of_rank[static_cast<size_t>(rank)]);
    actions_.invitations.push_back({.place = {.rank = rank,
                                              .node_of_rank = options_.node_of_rank,
                                              .group_id = options_.group_id,
                                              .generation = generation_,
                                              .bind_address = {}},
                                    .num_stages = num_stages(),
                                    .clean_from = clean_from_[node]});
  }
}

void RankGroup::Impl::SendConnect() {
  ConnectPayload connect{.generation = generation_,
                         .all_reduce = options_.all_reduce,
                         .policy = {},
                         .row_size = options_.row_size,
                         .connect_timeout = ConnectTimeout(),
                         .operation_timeout = OperationTimeout(),
                         .message_timeout = MessageTimeout()};
  for (const Rank& rank : ranks_) connect.addresses.push_back(*rank.address);
  for (int stage = 0; stage < num_stages(); ++stage) {
    connect.policy = policies_[static_cast<size_t>(stage)];
    const comm::Frame frame = MakeFrame(connect);
    for (int r = 0; r < stage_size(); ++r) {
      actions_.frames.emplace_back(stage * stage_size() + r, frame);
    }
  }
}

void RankGroup::Impl::SendToAll(const comm::Frame& frame) {
  for (int rank = 0; rank < size(); ++rank) {
    if (at(rank).state != RankState::kDown) actions_.frames.emplace_back(rank, frame);
  }
}

void RankGroup::Impl::Perform(Actions actions) {
  Tell(actions);
  if (!actions.failed.empty()) {
    log::Error("the group of ranks is no more: {}; the server has to be started anew",
               actions.failed);
  }
  for (const auto& [rank, why] : actions.restarts) RestartRank(rank, why);
  for (const int rank : actions.greetings) {
    std::string name = hub_->Describe(rank);
    const std::lock_guard lock(mutex_);
    at(rank).name = std::move(name);
  }
  for (PreparePayload& invitation : actions.invitations) {
    // Asked every time: a host that came back may have another one.
    invitation.place.bind_address = hub_->BindAddress(invitation.place.rank);
    hub_->Send(invitation.place.rank, MakeFrame(invitation));
  }
  for (auto& [rank, frame] : actions.frames) hub_->Send(rank, std::move(frame));
}

// In the order in which it happened: a generation that is formed in this turn may be broken in it,
// never the other way.
void RankGroup::Impl::Tell(const Actions& actions) {
  if (actions.formed) {
    const auto& [generation, seconds] = *actions.formed;
    log::Info("generation {} of the group of {} ranks is formed after {:.1f} s", generation, size(),
              seconds);
    if (observer_ != nullptr) observer_->OnFormed(generation, seconds);
  }
  for (const Loss& loss : actions.lost) {
    log::Warning("lost a rank: {}", loss.why);
    if (observer_ != nullptr) observer_->OnRankLost(loss.rank, loss.reason, loss.why);
  }
  if (!actions.broken.empty() && actions.lost.empty()) {
    log::Warning("the group of ranks broke: {}", actions.broken);
  }
  if (actions.served && observer_ != nullptr) observer_->OnBroken(actions.broken);
}

// Unless it came back by itself meanwhile.
void RankGroup::Impl::RestartRank(int rank, const std::string& why) {
  {
    const std::lock_guard lock(mutex_);
    if (at(rank).state != RankState::kDown) return;
  }
  hub_->Restart(rank, why);
}

}  // namespace nibble::engine
