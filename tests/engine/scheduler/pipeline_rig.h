// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A scheduler with several steps in flight, checked after every call.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/engine/scheduler/fake_model.h"
#include "tests/engine/scheduler/sequences.h"

namespace nibble::testing {

inline engine::SchedulerConfig ConfigFor(int64_t max_steps_in_flight) {
  engine::SchedulerConfig config = Config();
  config.max_steps_in_flight = max_steps_in_flight;
  return config;
}

// A scheduler with the fake model behind it, which computes a step when it is finished.
class PipelineRig {
 public:
  explicit PipelineRig(const engine::SchedulerConfig& config)
      : config_(config), scheduler_(config) {}

  engine::Scheduler& scheduler() { return scheduler_; }
  const std::map<engine::RequestId, Tokens>& generated() const { return generated_; }
  const std::map<engine::RequestId, engine::FinishReason>& finished() const { return finished_; }
  const std::deque<engine::ScheduledStep>& in_flight() const { return in_flight_; }
  int64_t num_preemptions() const { return num_preemptions_; }
  bool is_full() const {
    return static_cast<int64_t>(in_flight_.size()) == config_.max_steps_in_flight;
  }

  engine::ScheduledStep Plan() {
    engine::ScheduledStep step = scheduler_.Plan();
    scheduler_.CheckInvariants();
    num_preemptions_ += step.num_preemptions;
    if (!step.empty()) {
      CheckPlan(step);
      in_flight_.push_back(step);
    }
    EXPECT_EQ(scheduler_.num_steps_in_flight(), static_cast<int64_t>(in_flight_.size()));
    EXPECT_TRUE(!in_flight_.empty() || scheduler_.empty()) << "no progress";
    return step;
  }

  void Finish() {
    ASSERT_FALSE(in_flight_.empty());
    const engine::ScheduledStep step = std::move(in_flight_.front());
    in_flight_.pop_front();
    for (const engine::TokenUpdate& update : scheduler_.Update(step, model_.Run(step.plan))) {
      EXPECT_FALSE(finished_.contains(update.id));
      generated_[update.id].push_back(update.token_id);
      if (update.finish_reason) finished_[update.id] = *update.finish_reason;
    }
    scheduler_.CheckInvariants();
  }

  void Fill() {
    while (!is_full() && !Plan().empty()) {
    }
  }

  // Plans as many steps as may be in flight, then finishes one.
  void Turn() {
    Fill();
    if (!in_flight_.empty()) Finish();
  }

  void Lose() {
    scheduler_.LoseKvCache();
    in_flight_.clear();
    model_ = NewModel();
    scheduler_.CheckInvariants();
    EXPECT_EQ(scheduler_.pool().num_used(), 0);
    EXPECT_EQ(scheduler_.num_running(), 0);
  }

  void RunAll() {
    for (int i = 0; !scheduler_.empty() || !in_flight_.empty(); ++i) {
      ASSERT_LT(i, 20000) << "no progress";
      Turn();
    }
    EXPECT_EQ(scheduler_.pool().num_used(), 0);
  }

 private:
  FakeModel NewModel() const { return {config_.num_blocks, config_.block_size, kVocabSize}; }

  void CheckPlan(const engine::ScheduledStep& step) {
    EXPECT_LE(step.plan.num_tokens(), config_.max_num_batched_tokens);
    EXPECT_LE(step.plan.num_seqs(), config_.max_num_seqs);
    // Nobody is planned whose token is not there yet.
    for (const engine::ScheduledStep& before : in_flight_) {
      for (const auto& entry : before.entries) {
        if (!entry.samples) continue;
        EXPECT_EQ(std::ranges::count(Ids(step), entry.id), 0);
      }
    }
  }

  engine::SchedulerConfig config_;
  engine::Scheduler scheduler_;
  FakeModel model_ = NewModel();
  std::deque<engine::ScheduledStep> in_flight_;
  std::map<engine::RequestId, Tokens> generated_;
  std::map<engine::RequestId, engine::FinishReason> finished_;
  int64_t num_preemptions_ = 0;
};

// What a request gets when it is alone, one step at a time.
inline Tokens Alone(const engine::SequenceSpec& spec) {
  engine::SchedulerConfig config = Config();
  config.num_blocks = 1000;
  config.max_num_batched_tokens = 1000;
  config.enable_prefix_caching = false;
  PipelineRig rig(config);
  rig.scheduler().Add(spec);
  rig.RunAll();
  return rig.generated().at(spec.id);
}

inline std::vector<std::vector<engine::RequestId>> IdsInFlight(const PipelineRig& rig) {
  std::vector<std::vector<engine::RequestId>> ids;
  for (const engine::ScheduledStep& step : rig.in_flight()) ids.push_back(Ids(step));
  return ids;
}

}  // namespace nibble::testing
