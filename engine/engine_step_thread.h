// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Executes step plans on a thread of its own, so that the engine thread can hand out the previous
// step's tokens meanwhile.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/status.h"
#include "engine/exec/executor.h"

namespace nibble::engine {

class StepThread {
 public:
  explicit StepThread(std::unique_ptr<Executor> executor);
  // REQUIRES no step in progress.
  ~StepThread();
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;

  // Begins to execute `plan`, which must stay as it is until Wait() returned. One step at a time.
  void Start(const StepPlan* plan);
  // Blocks until the step is done.
  absl::StatusOr<StepOutput> Wait();
  // Executor::Ready(). Thread-safe, never blocks.
  absl::Status Ready() const { return executor_->Ready(); }

 private:
  void Run();

  const std::unique_ptr<Executor> executor_;  // thread_ alone executes

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_:
  const StepPlan* plan_ = nullptr;  // to execute
  std::optional<absl::StatusOr<StepOutput>> output_;
  bool stopping_ = false;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace nibble::engine
