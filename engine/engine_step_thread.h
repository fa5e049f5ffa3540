// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Waits for an executor's steps on a thread of its own, so that the engine thread can plan the next
// ones and hand out the previous one's tokens meanwhile.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/status.h"
#include "engine/exec/executor.h"

namespace nibble::engine {

class StepThread {
 public:
  // `on_done` is called on the step thread, without a lock held, whenever a step is done.
  StepThread(std::unique_ptr<Executor> executor, std::function<void()> on_done);
  // REQUIRES that Wait() returned for every step.
  ~StepThread();
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;

  // Executor::Begin(). The plan must stay as it is until Wait() returned for it.
  absl::Status Begin(const StepPlan& plan);
  // Blocks until the oldest step is done that was begun and not waited for. After an error the
  // others' Wait() returns soon, and what it gives is worth nothing.
  absl::StatusOr<StepOutput> Wait();
  // Whether Wait() would not block. Thread-safe.
  bool IsDone() const;
  // Executor::Ready(). Thread-safe, never blocks.
  absl::Status Ready() const { return executor_->Ready(); }

 private:
  void Run();

  const std::unique_ptr<Executor> executor_;  // thread_ alone calls Finish()
  const std::function<void()> on_done_;

  mutable std::mutex mutex_;
  std::condition_variable begun_;
  std::condition_variable done_;
  // Guarded by mutex_:
  int num_begun_ = 0;  // and not yet in Finish()
  std::deque<absl::StatusOr<StepOutput>> outputs_;
  bool stopping_ = false;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace nibble::engine
