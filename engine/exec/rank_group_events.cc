// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What comes from the ranks, on the hub's threads: noted here, acted on by the supervisor.

#include <algorithm>
#include <utility>

#include "engine/exec/rank_group_impl.h"

namespace nibble::engine {
namespace {

// Deaths of one rank before the first generation; after them the start has failed.
constexpr int kMaxEarlyLosses = 3;
constexpr std::chrono::milliseconds kFirstBackoff{100};
constexpr std::chrono::milliseconds kLongestBackoff{5'000};

}  // namespace

void RankGroup::Impl::OnUp(int rank) {
  const std::lock_guard lock(mutex_);
  Rank& r = at(rank);
  if (r.state != RankState::kDown) {
    MarkLost(rank, comm::LossReason::kFailed, r.name + ": came again");
  }
  // What was asked for has come; asked again, it would be ended.
  std::erase_if(actions_.restarts, [rank](const auto& restart) { return restart.first == rank; });
  r.state = RankState::kLoading;
  r.name = fmt::format("rank {}", rank);  // until the hub was asked
  r.hello_due = true;
  r.up_since = r.heard = r.told = r.quiet_since = Now();
  r.has_spoken = false;
  r.activity = {};
  r.unheard_since.reset();
  r.bytes_done = r.bytes_total = 0;
  r.last_pong = 0;
  ping_due_ = true;
  WakeSupervisor();
}

void RankGroup::Impl::OnDown(int rank, comm::LossReason reason, const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (at(rank).state == RankState::kDown) return;
  // The hub leaves it down until it is asked.
  final_.ok() ? MarkLostAndRestart(rank, reason, why) : MarkLost(rank, reason, why);
}

void RankGroup::Impl::OnFrame(int rank, comm::Frame frame) {
  // A step's end is decoded before the lock: it is the only large message, and somebody waits.
  if (frame.type == static_cast<uint32_t>(RankMessage::kStepDone)) {
    absl::StatusOr<StepDonePayload> done = StepDonePayload::Decode(frame.payload);
    if (done.ok()) {
      const std::lock_guard lock(mutex_);
      at(rank).heard = Now();
      HandleStepDone(rank, *std::move(done));
      return;
    }
  }
  const std::lock_guard lock(mutex_);
  Rank& r = at(rank);
  if (r.state == RankState::kDown) return;  // lost, and about to be started anew
  r.heard = Now();
  r.has_spoken = true;
  const absl::Status status = Handle(rank, frame);
  if (status.ok()) return;
  MarkLostAndRestart(rank, comm::LossReason::kFailed,
                     fmt::format("{}: sent what is no message of a rank: {}", r.name,
                                 std::string(status.message())));
}

// Errors that a peer, the network or an abort can cause; others are of the rank itself, and would
// come again.
bool RankGroup::Impl::IsOfTheGroup(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsAborted(status) ||
         absl::IsDeadlineExceeded(status) || absl::IsDataLoss(status) ||
         absl::IsCancelled(status) ||
         absl::IsAlreadyExists(status);  // a name that a dead rank has left
}

// An error: these bytes are none that a rank sends.
absl::Status RankGroup::Impl::Handle(int rank, const comm::Frame& frame) {
  Rank& r = at(rank);
  switch (static_cast<RankMessage>(frame.type)) {
    case RankMessage::kPong:
      return HandlePong(rank, frame.payload);
    case RankMessage::kExpertLoad:
      return HandleExpertLoad(rank, frame.payload);
    case RankMessage::kProgress:
      return HandleProgress(rank, frame.payload);
    case RankMessage::kLoaded:
      return HandleLoaded(rank, frame.payload);
    case RankMessage::kAllocated:
      if (r.state == RankState::kAllocating) r.state = RankState::kReady;
      WakeSupervisor();
      return absl::OkStatus();
    case RankMessage::kPrepared:
      return HandlePrepared(rank, frame.payload);
    case RankMessage::kConnected:
      return HandleConnected(rank, frame.payload);
    case RankMessage::kGenerationFailed:
      return HandleGenerationFailed(rank, frame.payload);
    case RankMessage::kFailed:
      return HandleFailed(rank, frame.payload);
    case RankMessage::kStepDone:
      return StepDonePayload::Decode(frame.payload).status();
    default:
      return InvalidArgument("type {}", frame.type);
  }
}

absl::Status RankGroup::Impl::HandlePong(int rank, std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(const PongPayload pong, PongPayload::Decode(payload));
  Rank& r = at(rank);
  if (r.last_pong < wanted_pong_ && pong.number >= wanted_pong_) WakeSupervisor();
  r.last_pong = std::max(r.last_pong, pong.number);
  r.told = r.heard;
  if (r.activity != pong.activity) {
    r.quiet_since = r.told;
    r.unheard_since.reset();
  }
  r.activity = pong.activity;
  return absl::OkStatus();
}

// At the start, what would come again ends it. Later it is tried again, as long as whoever waits
// for the group has patience: hosts come back, and memory that is taken becomes free.
absl::Status RankGroup::Impl::HandleGenerationFailed(int rank, std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(const auto failed, GenerationFailedPayload::Decode(payload));
  if (failed.generation != generation_) return absl::OkStatus();
  if (!formed_once_ && !IsOfTheGroup(failed.status)) {
    Fail(Annotate(failed.status, at(rank).name));
  } else {
    Suspect(rank, failed.status);
  }
  return absl::OkStatus();
}

absl::Status RankGroup::Impl::HandleFailed(int rank, std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(const auto failed, FailedPayload::Decode(payload));
  const absl::Status status = Annotate(failed.status, at(rank).name);
  if (formed_once_) {
    MarkLostAndRestart(rank, comm::LossReason::kFailed, std::string(status.message()));
  } else {
    Fail(status);
  }
  return absl::OkStatus();
}

absl::Status RankGroup::Impl::HandleProgress(int rank, std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(const auto progress, ProgressPayload::Decode(payload));
  at(rank).bytes_done = progress.bytes_done;
  at(rank).bytes_total = progress.bytes_total;
  return absl::OkStatus();
}

absl::Status RankGroup::Impl::HandleLoaded(int rank, std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(const auto loaded, LoadedPayload::Decode(payload));
  Rank& r = at(rank);
  if (loaded.rank != rank || loaded.size != size()) {
    Fail(InvalidArgument("{} says that it is rank {} of {}, want rank {} of {}", r.name,
                         loaded.rank, loaded.size, rank, size()));
  } else if (loaded.num_stages != options_.num_stages ||
             loaded.expert_size != options_.expert_size) {
    Fail(InvalidArgument("{} is one of {} stages and {} expert ranks, want {} and {}", r.name,
                         loaded.num_stages, loaded.expert_size, options_.num_stages,
                         options_.expert_size));
  } else if (loaded.vocab_size != options_.vocab_size || loaded.hidden_size != options_.row_size) {
    Fail(InvalidArgument("{} has another model: vocabulary {} and hidden size {}, want {} and {}",
                         r.name, loaded.vocab_size, loaded.hidden_size, options_.vocab_size,
                         options_.row_size));
  } else if (r.description && loaded.description.kv_block_bytes != r.description->kv_block_bytes) {
    Fail(InvalidArgument("{} came back with KV blocks of {} bytes, it had {}", r.name,
                         loaded.description.kv_block_bytes, r.description->kv_block_bytes));
  } else if (r.description && (loaded.description.num_layers != r.description->num_layers ||
                               loaded.description.num_experts != r.description->num_experts)) {
    Fail(InvalidArgument("{} came back with {} layers of {} experts, it had {} of {}", r.name,
                         loaded.description.num_layers, loaded.description.num_experts,
                         r.description->num_layers, r.description->num_experts));
  } else if (r.state == RankState::kLoading) {
    r.state = RankState::kLoaded;
    r.description = loaded.description;
    changed_.notify_all();
    WakeSupervisor();
  }
  return absl::OkStatus();
}

absl::Status RankGroup::Impl::HandlePrepared(int rank, std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(auto prepared, PreparedPayload::Decode(payload));
  if (phase_ != Phase::kPreparing || prepared.generation != generation_) return absl::OkStatus();
  at(rank).address = std::move(prepared.address);
  const int node = options_.node_of_rank[static_cast<size_t>(rank)];
  clean_from_[static_cast<size_t>(node)] = generation_;
  if (std::ranges::all_of(ranks_, [](const Rank& r) { return r.address.has_value(); })) {
    phase_ = Phase::kConnecting;
    form_deadline_ = Now() + options_.patience.connect;
    connect_due_ = true;
    WakeSupervisor();
  }
  return absl::OkStatus();
}

absl::Status RankGroup::Impl::HandleConnected(int rank, std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(const auto connected, ConnectedPayload::Decode(payload));
  if (phase_ != Phase::kConnecting || connected.generation != generation_) return absl::OkStatus();
  // A stage's sums have the same bits on all its ranks only by the same policy.
  const int stage = stage_of(rank);
  std::string& policy = policies_[static_cast<size_t>(stage)];
  const auto first = ranks_.begin() + stage * stage_size();
  const bool is_first =
      std::none_of(first, first + stage_size(), [](const Rank& r) { return r.connected; });
  if (is_first) {
    NIBBLE_RETURN_IF_ERROR(comm::ParsePolicy(connected.policy).status());
    policy = connected.policy;
  } else if (connected.policy != policy) {
    Suspect(rank, DataLoss("has another all-reduce policy than the ranks of its stage before it"));
    return absl::OkStatus();
  }
  at(rank).connected = true;
  if (!std::ranges::all_of(ranks_, [](const Rank& r) { return r.connected; })) {
    return absl::OkStatus();
  }
  phase_ = Phase::kFormed;
  formed_once_ = served_ = true;
  actions_.formed = {generation_, std::chrono::duration<double>(Now() - broken_at_).count()};
  changed_.notify_all();
  WakeSupervisor();
  return absl::OkStatus();
}

void RankGroup::Impl::MarkLost(int rank, comm::LossReason reason, const std::string& why) {
  Rank& r = at(rank);
  r.state = RankState::kDown;
  r.why_down = why;
  r.hello_due = false;
  actions_.lost.push_back({.rank = rank, .reason = reason, .why = why});
  if (phase_ != Phase::kIdle) BreakGeneration(why);
  // A host that cannot be reached for a while is no fault of the rank.
  const bool counts = !formed_once_ && reason != comm::LossReason::kUnreachable;
  if (counts && ++r.num_early_losses == kMaxEarlyLosses) {
    Fail(Internal("{}; it was lost {} times before the group was formed once", why,
                  kMaxEarlyLosses));
  }
  WakeSupervisor();
}

void RankGroup::Impl::MarkLostAndRestart(int rank, comm::LossReason reason,
                                         const std::string& why) {
  actions_.restarts.emplace_back(rank, why);
  MarkLost(rank, reason, why);
}

// A rank says that the group does not work. It may be the first to feel that another one is gone:
// all are asked, and who does not answer is to blame.
void RankGroup::Impl::Suspect(int rank, const absl::Status& status) {
  if (phase_ == Phase::kIdle || phase_ == Phase::kSuspect) return;
  phase_ = Phase::kSuspect;
  why_broken_ = fmt::format("{}: {}", at(rank).name, std::string(status.message()));
  complaint_ = status.code();
  abort_due_ = true;  // others may wait for it
  wanted_pong_ = ping_number_ + 1;
  ping_due_ = true;
  WakeSupervisor();
}

void RankGroup::Impl::BreakGeneration(const std::string& why) {
  why_broken_ = why;
  if (served_) broken_at_ = Now();
  if (std::exchange(served_, false)) actions_.served = true;
  phase_ = Phase::kIdle;
  ended_generation_ = generation_;
  actions_.broken = why;
  abort_due_ = true;
  connect_due_ = false;
  wanted_pong_ = ping_number_ + 1;
  ping_due_ = true;
  const auto backoff =
      num_failures_ == 0
          ? std::chrono::milliseconds(0)
          : std::min(kLongestBackoff, kFirstBackoff * (1 << std::min(num_failures_, 7)));
  ++num_failures_;
  next_form_ = Now() + backoff;
  changed_.notify_all();
  WakeSupervisor();
}

void RankGroup::Impl::Fail(const absl::Status& status) {
  if (!final_.ok()) return;
  // UNAVAILABLE would say that it may come back.
  final_ = absl::IsUnavailable(status) ? absl::InternalError(status.message()) : status;
  if (formed_once_) actions_.failed = std::string(status.message());
  abort_due_ = true;
  changed_.notify_all();
  WakeSupervisor();
}

void RankGroup::Impl::WakeSupervisor() {
  woken_ = true;
  work_.notify_one();
}

}  // namespace nibble::engine
