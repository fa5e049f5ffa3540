// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What RankGroup's supervisor finds wrong: ranks that are silent, ranks that answer but do not get
// on, and ranks that get on with nothing because they cannot reach each other.

#include <algorithm>
#include <utility>

#include "engine/exec/rank_group_impl.h"

namespace nibble::engine {
namespace {

using comm::LossReason;

// Complaints of ranks that all live, one generation after another; after them the start has failed.
constexpr int kMaxEarlyFailures = 5;
// A collective of much data may take long on a slow network. Slower ones are none.
constexpr uint64_t kLeastBytesPerMs = 10'000;

double Seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

// Time in which this process itself did not run is nobody's silence.
void RankGroup::Impl::ForgiveOwnStop(Clock::time_point now) {
  const Clock::duration late = now - last_turn_ - 2 * ping_interval_;
  last_turn_ = now;
  if (late <= Clock::duration::zero()) return;
  for (Rank& rank : ranks_) {
    rank.heard = std::min(now, rank.heard + late);
    rank.quiet_since = std::min(now, rank.quiet_since + late);
    if (rank.unheard_since) rank.unheard_since = std::min(now, *rank.unheard_since + late);
  }
}

void RankGroup::Impl::FindLostRanks(Clock::time_point now) {
  for (int rank = 0; rank < size(); ++rank) {
    if (at(rank).state != RankState::kDown) FindSilentRank(rank, now);
    if (at(rank).state != RankState::kDown) FindHungRank(rank, now);
  }
}

// A process that was just started first has to get as far as its channel, from a slow disk for all
// that is known.
void RankGroup::Impl::FindSilentRank(int rank, Clock::time_point now) {
  const Rank& r = at(rank);
  const Clock::duration silence = now - r.heard;
  if (r.has_spoken && silence > options_.rank_timeout) {
    MarkLostAndRestart(rank, LossReason::kSilent,
                       fmt::format("{}: no answer for {:.1f} s", r.name, Seconds(silence)));
  } else if (!r.has_spoken &&
             silence > std::max(options_.rank_timeout, options_.patience.first_word)) {
    MarkLostAndRestart(rank, LossReason::kSilent,
                       fmt::format("{}: has said nothing in the {:.1f} s since it was started",
                                   r.name, Seconds(silence)));
  }
}

void RankGroup::Impl::FindHungRank(int rank, Clock::time_point now) {
  const Rank& r = at(rank);
  const auto hung = [&](const char* what, Clock::duration time) {
    MarkLostAndRestart(rank, LossReason::kHung,
                       fmt::format("{}: {} {:.1f} s", r.name, what, Seconds(time)));
  };
  if (r.state == RankState::kLoading && now - r.up_since > options_.start_timeout) {
    hung("answers, but has not loaded after", now - r.up_since);
  } else if (r.state == RankState::kAllocating &&
             now - r.allocating_since > options_.patience.allocate) {
    hung("answers, but has not taken its memory after", now - r.allocating_since);
  } else if (phase_ == Phase::kFormed && r.activity.phase == RankPhase::kComputing &&
             r.activity.generation == generation_ &&
             r.told - r.quiet_since > options_.patience.compute) {
    hung("answers, but its step has not got on for", r.told - r.quiet_since);
  }
}

// The ranks' own limits end sooner; who is past this one hangs. A rank that hung while it connected
// shows in the next generation: it does not prepare.
void RankGroup::Impl::FindLateForming(Clock::time_point now) {
  const bool prepares = phase_ == Phase::kPreparing;
  if ((!prepares && phase_ != Phase::kConnecting) || now <= form_deadline_) return;
  const std::string generation = std::to_string(generation_);
  const double limit = Seconds(prepares ? options_.patience.prepare : options_.patience.connect);
  for (int rank = 0; rank < size(); ++rank) {
    const Rank& r = at(rank);
    if (prepares ? r.address.has_value() : r.connected) continue;
    MarkLostAndRestart(rank, LossReason::kHung,
                       fmt::format("{}: answers, but has not {} generation {} within {:.1f} s",
                                   r.name, prepares ? "prepared" : "joined", generation, limit));
  }
}

RankGroup::Impl::Clock::duration RankGroup::Impl::PatienceFor(const RankActivity& activity) const {
  return options_.rank_timeout +
         std::chrono::milliseconds(std::min(activity.bytes / kLeastBytesPerMs, uint64_t{60'000}));
}

// Ranks that answer and cannot reach each other: inside a stage, whatever other stages compute
// meanwhile; from one stage to the next; or all of them.
void RankGroup::Impl::FindDeadLinks(Clock::time_point now) {
  if (phase_ != Phase::kFormed) return;
  for (int first = 0; first < size(); first += stage_size()) {
    if (FindDeadLinkAmong(first, stage_size())) return;
  }
  for (int receiver = stage_size(); receiver < size(); ++receiver) {
    if (FindDeadHandOff(receiver, now)) return;
  }
  FindDeadLinkAmong(0, size());
}

// Every one of these ranks answers, none computes, and since rank_timeout none has got on, although
// one waits for others: they cannot reach each other. A peer that computes for long is not taken
// for a dead link, nor is a wait that grows with the data, nor one for another stage.
bool RankGroup::Impl::FindDeadLinkAmong(int first_rank, int count) {
  std::string waiting;
  Clock::duration quiet = Clock::duration::max();
  for (int r = first_rank; r < first_rank + count; ++r) {
    const Rank& rank = at(r);
    const RankActivity& activity = rank.activity;
    if (activity.generation != generation_ || activity.phase == RankPhase::kComputing) return false;
    const bool in_stage = activity.phase == RankPhase::kCollective;
    if (count < size() && !in_stage && activity.phase != RankPhase::kIdle) return false;
    if (rank.told - rank.quiet_since <= PatienceFor(activity)) return false;
    quiet = std::min(quiet, rank.told - rank.quiet_since);
    if (activity.phase == RankPhase::kIdle) continue;
    waiting += waiting.empty() ? "" : ", ";
    waiting += in_stage ? fmt::format("{} in its operation {}", rank.name, activity.operation)
                        : fmt::format("{} after {} messages of the stage before it", rank.name,
                                      activity.received);
  }
  if (waiting.empty()) return false;
  BreakGeneration(
      fmt::format("the ranks wait for each other for {:.1f} s, and all of them answer: {}; does "
                  "the network between their hosts carry nothing?",
                  Seconds(quiet), waiting));
  return true;
}

// A rank waits for a message that its sender has let go, and has waited for it since rank_timeout.
bool RankGroup::Impl::FindDeadHandOff(int receiver, Clock::time_point now) {
  Rank& waits = at(receiver);
  const Rank& sender = at(receiver - stage_size());
  const bool is_on_its_way =
      waits.activity.phase == RankPhase::kReceiving && waits.activity.generation == generation_ &&
      sender.activity.generation == generation_ && sender.activity.sent > waits.activity.received;
  if (!is_on_its_way) {
    waits.unheard_since.reset();
    return false;
  }
  if (!waits.unheard_since) waits.unheard_since = now;
  // Both have said so since.
  const Clock::duration wait = std::min(waits.told, sender.told) - *waits.unheard_since;
  if (wait <= PatienceFor(waits.activity)) return false;
  BreakGeneration(
      fmt::format("{} waits for {:.1f} s for message {} of {}, which has sent it, and both of them "
                  "answer; does the network between their hosts carry nothing?",
                  waits.name, Seconds(wait), waits.activity.received + 1, sender.name));
  return true;
}

// All live, so that the rank that complained is believed.
void RankGroup::Impl::JudgeSuspicion() {
  if (phase_ != Phase::kSuspect) return;
  const bool all_answered = std::ranges::all_of(
      ranks_, [this](const Rank& rank) { return rank.last_pong >= wanted_pong_; });
  if (!all_answered) return;
  BreakGeneration(std::string(why_broken_));
  if (formed_once_ || ++num_early_failures_ < kMaxEarlyFailures) return;
  Fail(absl::Status(complaint_, fmt::format("{}; {} generations ended so before one was formed",
                                            why_broken_, num_early_failures_)));
}

}  // namespace nibble::engine
