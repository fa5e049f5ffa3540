// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// RankGroup's supervisor: asks the ranks whether they live, ends generations, forms new ones.

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "engine/exec/rank_group_impl.h"

namespace nibble::engine {
namespace {

// Of a generation. The ranks' own limits end sooner; this one is for what they forgot.
constexpr std::chrono::milliseconds kConnectTimeout{30'000};
constexpr std::chrono::milliseconds kOperationTimeout{60'000};
constexpr std::chrono::milliseconds kFormTimeout = 2 * kConnectTimeout + kOperationTimeout;

double Seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

void RankGroup::Impl::Supervise() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    woken_ = false;
    Decide(Clock::now());
    Actions actions = std::exchange(actions_, {});
    lock.unlock();
    Perform(std::move(actions));
    lock.lock();
    work_.wait_until(lock, NextTurn(), [this] { return woken_ || stopping_; });
  }
}

RankGroup::Impl::Clock::time_point RankGroup::Impl::NextTurn() const {
  Clock::time_point next = next_ping_;
  if (phase_ == Phase::kIdle && next_form_ > last_turn_) next = std::min(next, next_form_);
  for (const Rank& rank : ranks_) {
    if (rank.state == RankState::kDown) continue;
    next = std::min(next, rank.heard + options_.rank_timeout + std::chrono::milliseconds(1));
  }
  return next;
}

void RankGroup::Impl::Decide(Clock::time_point now) {
  ForgiveOwnStop(now);
  FindSilentRanks(now);
  SendPings(now);
  JudgeSuspicion();
  AbortBroken();
  if (!final_.ok()) return;
  Greet();
  Allocate();
  Form(now);
}

// Time in which this process itself did not run is nobody's silence.
void RankGroup::Impl::ForgiveOwnStop(Clock::time_point now) {
  const Clock::duration late = now - last_turn_ - 2 * ping_interval_;
  last_turn_ = now;
  if (late <= Clock::duration::zero()) return;
  for (Rank& rank : ranks_) rank.heard = std::min(now, rank.heard + late);
}

void RankGroup::Impl::FindSilentRanks(Clock::time_point now) {
  for (int rank = 0; rank < size(); ++rank) {
    const Rank& r = at(rank);
    if (r.state == RankState::kDown) continue;
    if (now - r.heard > options_.rank_timeout) {
      MarkLostAndRestart(rank,
                         fmt::format("{}: no answer for {:.1f} s", r.name, Seconds(now - r.heard)));
    } else if (r.state == RankState::kLoading && now - r.up_since > options_.start_timeout) {
      MarkLostAndRestart(rank, fmt::format("{}: has not loaded after {:.0f} s", r.name,
                                           Seconds(now - r.up_since)));
    }
  }
  const bool is_forming = phase_ == Phase::kPreparing || phase_ == Phase::kConnecting;
  if (is_forming && now > form_deadline_) {
    BreakGeneration(fmt::format("generation {} was not formed within {:.0f} s", generation_,
                                Seconds(kFormTimeout)));
  }
}

void RankGroup::Impl::SendPings(Clock::time_point now) {
  if (!ping_due_ && now < next_ping_) return;
  ping_due_ = false;
  next_ping_ = now + ping_interval_;
  SendToAll(MakeFrame(RankMessage::kPing, PingPayload{.number = ++ping_number_}.Encode()));
}

// All live, so that the rank that complained is believed.
void RankGroup::Impl::JudgeSuspicion() {
  if (phase_ != Phase::kSuspect) return;
  const bool all_answered = std::ranges::all_of(
      ranks_, [this](const Rank& rank) { return rank.last_pong >= wanted_pong_; });
  if (all_answered) BreakGeneration(std::string(why_broken_));
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
  form_deadline_ = now + kFormTimeout;
  SendPrepare();
}

void RankGroup::Impl::SendPrepare() {
  for (int rank = 0; rank < size(); ++rank) {
    at(rank).address.reset();
    at(rank).connected = false;
    const auto node = static_cast<size_t>(options_.node_of_rank[static_cast<size_t>(rank)]);
    actions_.frames.emplace_back(
        rank,
        MakeFrame(PreparePayload{.place = {.rank = rank,
                                           .node_of_rank = options_.node_of_rank,
                                           .group_id = options_.group_id,
                                           .generation = generation_,
                                           .bind_address = options_.bind_address_of_node[node]},
                                 .clean_from = clean_from_[node]}));
  }
}

void RankGroup::Impl::SendConnect() {
  ConnectPayload connect{
      .generation = generation_,
      .all_reduce = options_.all_reduce,
      .policy = policy_,
      .row_size = options_.row_size,
      .connect_timeout = kConnectTimeout,
      .operation_timeout = std::max(kOperationTimeout, 2 * options_.rank_timeout)};
  for (const Rank& rank : ranks_) connect.addresses.push_back(*rank.address);
  SendToAll(MakeFrame(connect));
}

void RankGroup::Impl::SendToAll(const comm::Frame& frame) {
  for (int rank = 0; rank < size(); ++rank) {
    if (at(rank).state != RankState::kDown) actions_.frames.emplace_back(rank, frame);
  }
}

void RankGroup::Impl::Perform(Actions actions) {
  for (const auto& [rank, why] : actions.lost) {
    log::Warning("lost a rank: {}", why);
    if (observer_ != nullptr) observer_->OnRankLost(rank, why);
  }
  if (!actions.broken.empty() && actions.lost.empty()) {
    log::Warning("the group of ranks broke: {}", actions.broken);
  }
  for (const auto& [rank, why] : actions.restarts) hub_->Restart(rank, why);
  for (const int rank : actions.greetings) {
    std::string name = hub_->Describe(rank);
    const std::lock_guard lock(mutex_);
    at(rank).name = std::move(name);
  }
  for (auto& [rank, frame] : actions.frames) hub_->Send(rank, std::move(frame));
  if (actions.formed) {
    const auto& [generation, seconds] = *actions.formed;
    log::Info("generation {} of the group of {} ranks is formed after {:.1f} s", generation, size(),
              seconds);
    if (observer_ != nullptr) observer_->OnFormed(generation, seconds);
  }
}

}  // namespace nibble::engine
