// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A few threads for requests whose reading, rendering and tokenizing takes long, so that the io
// threads go on with streams and probes meanwhile.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/status.h"

namespace nibble::server {

// Thread-safe. Tasks start in the order in which they came.
class PreparationPool {
 public:
  PreparationPool(int num_threads, int64_t max_waiting);
  ~PreparationPool();  // Stop()s
  PreparationPool(const PreparationPool&) = delete;
  PreparationPool& operator=(const PreparationPool&) = delete;

  // RESOURCE_EXHAUSTED when `max_waiting` tasks wait, UNAVAILABLE after Stop; then `task` is not
  // run.
  absl::Status Run(std::function<void()> task);
  // Drops what waits, ends what runs, joins the threads. Idempotent; not from a task.
  void Stop();

 private:
  void WorkerMain();

  const int64_t max_waiting_;
  std::mutex mutex_;  // guards all below but threads_
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;  // changed by constructor and Stop only
};

}  // namespace nibble::server
