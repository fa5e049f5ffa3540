// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/engine_step_thread.h"

#include <utility>

#include "base/check.h"

namespace nibble::engine {

StepThread::StepThread(std::unique_ptr<Executor> executor)
    : executor_(std::move(executor)), thread_([this] { Run(); }) {}

StepThread::~StepThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void StepThread::Start(const StepPlan* plan) {
  {
    const std::lock_guard lock(mutex_);
    NIBBLE_CHECK(plan_ == nullptr && !output_.has_value());
    plan_ = plan;
  }
  changed_.notify_all();
}

absl::StatusOr<StepOutput> StepThread::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return output_.has_value(); });
  absl::StatusOr<StepOutput> output = *std::move(output_);
  output_.reset();
  return output;
}

void StepThread::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return plan_ != nullptr || stopping_; });
    if (stopping_) return;
    const StepPlan* plan = std::exchange(plan_, nullptr);
    lock.unlock();
    absl::StatusOr<StepOutput> output = executor_->Execute(*plan);
    lock.lock();
    output_ = std::move(output);
    changed_.notify_all();
  }
}

}  // namespace nibble::engine
