// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/engine_step_thread.h"

#include <utility>

namespace nibble::engine {

StepThread::StepThread(std::unique_ptr<Executor> executor, std::function<void()> on_done)
    : executor_(std::move(executor)), on_done_(std::move(on_done)), thread_([this] { Run(); }) {}

StepThread::~StepThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  begun_.notify_all();
  thread_.join();
}

absl::Status StepThread::Begin(const StepPlan& plan) {
  NIBBLE_RETURN_IF_ERROR(executor_->Begin(plan));
  {
    const std::lock_guard lock(mutex_);
    ++num_begun_;
  }
  begun_.notify_one();
  return absl::OkStatus();
}

absl::StatusOr<StepOutput> StepThread::Wait() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return !outputs_.empty(); });
  absl::StatusOr<StepOutput> output = std::move(outputs_.front());
  outputs_.pop_front();
  return output;
}

bool StepThread::IsDone() const {
  const std::lock_guard lock(mutex_);
  return !outputs_.empty();
}

void StepThread::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    begun_.wait(lock, [this] { return num_begun_ > 0 || stopping_; });
    if (stopping_) return;
    --num_begun_;
    lock.unlock();
    absl::StatusOr<StepOutput> output = executor_->Finish();
    lock.lock();
    outputs_.push_back(std::move(output));
    lock.unlock();
    done_.notify_one();
    on_done_();
    lock.lock();
  }
}

}  // namespace nibble::engine
