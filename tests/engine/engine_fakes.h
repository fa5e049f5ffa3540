// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A clock, an executor, a sink and an observer for engine tests.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "base/clock.h"
#include "engine/engine.h"
#include "tests/engine/scheduler/fake_model.h"

namespace nibble::testing {

class FakeClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_.load(); }
  void Advance(int64_t ns) { now_ns_ += ns; }

 private:
  std::atomic<int64_t> now_ns_{1'000'000'000};
};

// Shared by a test and the executor it gave away. Every step takes `step_ns` of the fake clock. A
// gate holds steps that were begun until the test lets them go.
struct FakeDevice {
  FakeClock clock;
  int64_t step_ns = 1'000'000;
  int max_steps_in_flight = 1;  // set before the engine is made

  void CloseGate() {
    const std::lock_guard lock(mutex);
    gate_open = false;
  }
  void OpenGate() {
    const std::lock_guard lock(mutex);
    gate_open = true;
    changed.notify_all();
  }
  // A loss that the next step tells; `missing` and `polls_to_ready` as there.
  void LoseAtNextStep(int64_t polls = -1) {
    const std::lock_guard lock(mutex);
    lose_at_steps.insert(num_begun);
    polls_to_ready = polls;
  }
  void ComeBack() {
    const std::lock_guard lock(mutex);
    missing = absl::OkStatus();
  }
  // Blocks until the loop has asked `count` times since the loss.
  void WaitForPolls(int64_t count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return num_polls >= count; });
  }
  // Blocks until `count` steps were begun in all.
  void WaitForSteps(int64_t count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return num_begun >= count; });
  }

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex:
  bool gate_open = true;
  int64_t num_begun = 0;
  int64_t max_in_flight = 0;  // seen
  int64_t max_seqs_in_step = 0;
  int64_t fail_at_step = -1;      // Finish returns an error
  int64_t wrong_id_at_step = -1;  // a token id outside the vocabulary
  int64_t too_few_at_step = -1;   // a token is missing
  int64_t nan_at_step = -1;       // the first row has no finite logit
  // Finish, or Begin, answers UNAVAILABLE at these steps, and Ready() until it was asked
  // `polls_to_ready` times (-1: until the test clears `missing`). What the blocks held is gone.
  std::set<int64_t> lose_at_steps;
  std::set<int64_t> lose_at_begins;
  int64_t polls_to_ready = 3;
  int64_t num_polls = 0;
  absl::Status missing;
};

class FakeExecutor final : public engine::Executor {
 public:
  FakeExecutor(const engine::ExecutorLimits& limits, std::shared_ptr<FakeDevice> device)
      : limits_(limits), device_(std::move(device)), model_(MakeModel(limits)) {}

  engine::ExecutorLimits limits() const override { return limits_; }

  absl::Status Ready() const override {
    const std::lock_guard lock(device_->mutex);
    if (device_->missing.ok()) return absl::OkStatus();
    ++device_->num_polls;
    device_->changed.notify_all();
    if (device_->num_polls == device_->polls_to_ready) device_->missing = absl::OkStatus();
    return device_->missing;
  }

  int max_steps_in_flight() const override { return device_->max_steps_in_flight; }

  absl::Status Begin(const engine::StepPlan& plan) override {
    const std::lock_guard lock(device_->mutex);
    if (!device_->missing.ok()) return device_->missing;
    const int64_t step = device_->num_begun++;
    device_->changed.notify_all();
    if (device_->lose_at_begins.contains(step)) return Lose(step);
    steps_.push_back({step, &plan});
    const auto num_in_flight = static_cast<int64_t>(steps_.size());
    EXPECT_LE(num_in_flight, device_->max_steps_in_flight);
    device_->max_in_flight = std::max(device_->max_in_flight, num_in_flight);
    device_->max_seqs_in_step = std::max(device_->max_seqs_in_step, plan.num_seqs());
    return absl::OkStatus();
  }

  absl::StatusOr<engine::StepOutput> Finish() override {
    std::unique_lock lock(device_->mutex);
    device_->changed.wait(lock, [&] { return device_->gate_open || steps_.empty(); });
    if (steps_.empty()) return Unavailable("nothing is under way");
    const auto [step, plan] = steps_.front();
    steps_.pop_front();
    device_->clock.Advance(device_->step_ns);
    if (step == device_->fail_at_step) {
      steps_.clear();
      return Internal("the device burnt down in step {}", step);
    }
    if (device_->lose_at_steps.contains(step)) return Lose(step);
    engine::StepOutput output = model_.Run(*plan);
    if (step == device_->wrong_id_at_step) {
      output.tokens.at(0).token_id = static_cast<int32_t>(limits_.vocab_size);
    }
    if (step == device_->too_few_at_step) output.tokens.pop_back();
    if (step == device_->nan_at_step) output.tokens.at(0) = {.no_finite_logit = true};
    return output;
  }

 private:
  static FakeModel MakeModel(const engine::ExecutorLimits& limits) {
    // An absurd number of blocks is for Engine::Create to refuse, not for the test to hold.
    return {std::min<int64_t>(limits.num_blocks, 10000), limits.block_size,
            static_cast<int32_t>(limits.vocab_size)};
  }

  // Under the device's mutex.
  absl::Status Lose(int64_t step) {
    steps_.clear();
    device_->num_polls = 0;
    device_->changed.notify_all();
    const absl::Status lost = Unavailable("rank 1 died in step {}", step);
    if (device_->polls_to_ready == 0) {
      // Ready again before anybody asks: steps may still be begun that read what is lost.
      model_.Lose();
    } else {
      device_->missing = lost;
      model_ = MakeModel(limits_);
    }
    return lost;
  }

  engine::ExecutorLimits limits_;
  std::shared_ptr<FakeDevice> device_;
  // Guarded by the device's mutex:
  FakeModel model_;
  std::deque<std::pair<int64_t, const engine::StepPlan*>> steps_;  // under way
};

// Collects one request's deltas and checks the contract of OutputSink.
class FakeSink final : public engine::OutputSink {
 public:
  void OnOutput(engine::RequestOutput output) override {
    std::function<void(const engine::RequestOutput&)> callback;
    {
      const std::lock_guard lock(mutex_);
      EXPECT_FALSE(last_.has_value()) << "a delta after the last one";
      text_ += output.text;
      token_ids_.insert(token_ids_.end(), output.token_ids.begin(), output.token_ids.end());
      EXPECT_EQ(output.num_generated_tokens, static_cast<int64_t>(token_ids_.size()));
      callback = callback_;
    }
    if (callback) callback(output);
    const std::lock_guard lock(mutex_);
    if (output.finish_reason) last_ = std::move(output);
    changed_.notify_all();
  }

  // Called for every delta, from the engine thread. Set before Submit.
  void set_callback(std::function<void(const engine::RequestOutput&)> callback) {
    callback_ = std::move(callback);
  }

  engine::RequestOutput WaitForEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return last_.has_value(); });
    return *last_;
  }
  void WaitForTokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return token_ids_.size() >= count || last_.has_value(); });
  }
  std::string text() const {
    const std::lock_guard lock(mutex_);
    return text_;
  }
  std::vector<int32_t> token_ids() const {
    const std::lock_guard lock(mutex_);
    return token_ids_;
  }
  bool ended() const {
    const std::lock_guard lock(mutex_);
    return last_.has_value();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void(const engine::RequestOutput&)> callback_;
  std::string text_;
  std::vector<int32_t> token_ids_;
  std::optional<engine::RequestOutput> last_;
};

// Read it only when the engine is idle or stopped.
class FakeObserver final : public engine::EngineObserver {
 public:
  void OnStep(const engine::StepStats& stats) override {
    const std::lock_guard lock(mutex_);
    steps_.push_back(stats);
  }
  void OnFinished(const engine::FinishedRequestStats& stats) override {
    const std::lock_guard lock(mutex_);
    finished_.push_back(stats);
  }
  std::vector<engine::StepStats> steps() const {
    const std::lock_guard lock(mutex_);
    return steps_;
  }
  std::vector<engine::FinishedRequestStats> finished() const {
    const std::lock_guard lock(mutex_);
    return finished_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<engine::StepStats> steps_;
  std::vector<engine::FinishedRequestStats> finished_;
};

}  // namespace nibble::testing
