// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// RankGroup's steps: sent to all ranks, answered by one, lost together; and what the ranks count
// while they compute them.

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/exec/rank_group_impl.h"
#include "engine/exec/spin.h"

namespace nibble::engine {
namespace {

// Below what hubs let wait for a rank that reads.
constexpr size_t kMaxStepBytes = size_t{448} << 20;

}  // namespace

absl::Status RankGroup::Impl::Begin(const StepPlan& plan) {
  std::unique_lock lock(mutex_);
  if (!final_.ok()) return final_;
  const bool is_loss_untold =
      told_generation_ < dirty_generation_ && dirty_generation_ <= ended_generation_;
  if (phase_ != Phase::kFormed || is_loss_untold) return NotReady();
  NIBBLE_CHECK_LT(steps_.size(), static_cast<size_t>(num_stages()));
  const uint64_t generation = generation_;
  const uint64_t number = ++step_number_;
  lock.unlock();

  std::string step = StepPayload::Encode(generation, number, plan);
  if (step.size() > kMaxStepBytes) {
    return ResourceExhausted("a step's plan has {} bytes, the limit is {}", step.size(),
                             kMaxStepBytes);
  }
  const std::vector<comm::Frame> frames = StepFrames(std::move(step));
  lock.lock();
  steps_.push_back({.number = number, .generation = generation, .output = {}});
  dirty_generation_ = generation;
  lock.unlock();
  for (int rank = 0; rank < size(); ++rank) {
    for (const comm::Frame& frame : frames) hub_->Send(rank, frame);
  }
  return absl::OkStatus();
}

absl::StatusOr<StepOutput> RankGroup::Impl::Finish() {
  std::unique_lock lock(mutex_);
  if (steps_.empty()) return absl::FailedPreconditionError("no step is under way");
  const uint64_t number = steps_.front().number;
  if (!steps_.front().output) {
    lock.unlock();
    SpinUntil([&] { return last_done_.load(std::memory_order_acquire) >= number; });
    lock.lock();
  }
  // No time limit: the supervisor ends the generation when a rank does not answer, does not get on
  // or waits for another one in vain.
  changed_.wait(lock, [&] {
    return steps_.front().output || ended_generation_ >= steps_.front().generation || !final_.ok();
  });
  Step step = std::move(steps_.front());
  steps_.pop_front();
  if (!step.output) return final_.ok() ? NotReady() : final_;
  num_failures_ = 0;
  return *std::move(step.output);
}

// What Begin and Finish say when nothing is computed; the loss is told with it.
absl::Status RankGroup::Impl::NotReady() {
  const bool is_formed = phase_ == Phase::kFormed;
  // One that is being formed, or suspected, will be over before the next step.
  told_generation_ = is_formed ? ended_generation_ : generation_;
  return Unavailable("{}", is_formed ? why_broken_ : MissingText());
}

void RankGroup::Impl::HandleStepDone(int rank, StepDonePayload done) {
  if (phase_ != Phase::kFormed || done.generation != generation_) return;
  if (!done.status.ok()) {
    if (IsOfTheGroup(done.status)) {
      Suspect(rank, done.status);
    } else {
      Fail(Annotate(done.status, at(rank).name));
    }
    return;
  }
  if (rank != answering_rank()) return;
  // Before it there may be steps of an older generation that nobody has finished yet.
  const auto step = std::ranges::find_if(
      steps_, [this](const Step& s) { return s.generation == generation_ && !s.output; });
  if (step == steps_.end() || step->number != done.number) return;
  step->output = std::move(done.output);
  if (!std::exchange(loads_are_old_, true)) WakeSupervisor();
  last_done_.store(done.number, std::memory_order_release);
  changed_.notify_all();
}

// The first rank of each stage: all of a stage count the same.
void RankGroup::Impl::AskForLoads(Clock::time_point now) {
  if (!loads_are_old_ || now < next_loads_ || phase_ != Phase::kFormed) return;
  loads_are_old_ = false;
  next_loads_ = now + options_.load_interval;
  for (int rank = 0; rank < size(); rank += stage_size()) {
    if (at(rank).description->num_experts == 0) continue;
    actions_.frames.emplace_back(rank, MakeFrame(RankMessage::kTellExpertLoad));
  }
}

absl::Status RankGroup::Impl::HandleExpertLoad(int rank, std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(auto told, ExpertLoadPayload::Decode(payload));
  const std::optional<RankDescription>& description = at(rank).description;
  if (rank % stage_size() != 0 || !description || told.load.empty() ||
      told.load.num_layers != description->num_layers ||
      told.load.num_experts != description->num_experts) {
    return InvalidArgument("kExpertLoad: the load of {} layers of {} experts", told.load.num_layers,
                           told.load.num_experts);
  }
  StageLoad& load = loads_[static_cast<size_t>(stage_of(rank))];
  if (load.process != told.process) load.before.Add(load.now);
  load.process = told.process;
  load.now = std::move(told.load);
  return absl::OkStatus();
}

ExpertLoad RankGroup::Impl::expert_load() const {
  ExpertLoad sum;
  const std::lock_guard lock(mutex_);
  for (const StageLoad& load : loads_) {
    sum.Add(load.before);
    sum.Add(load.now);
  }
  return sum;
}

}  // namespace nibble::engine
