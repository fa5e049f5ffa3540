// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/preparation_pool.h"

#include <utility>

#include "base/batch_scheduling.h"

namespace nibble::server {

PreparationPool::PreparationPool(int num_threads, int64_t max_waiting) : max_waiting_(max_waiting) {
  const ScopedBatchScheduling batch;  // of the threads
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { WorkerMain(); });
}

PreparationPool::~PreparationPool() { Stop(); }

absl::Status PreparationPool::Run(std::function<void()> task) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stopping_) return Unavailable("the server is shutting down");
  if (static_cast<int64_t>(tasks_.size()) >= max_waiting_) {
    return ResourceExhausted("{} large requests wait to be read, the limit is {}", tasks_.size(),
                             max_waiting_);
  }
  tasks_.push_back(std::move(task));
  changed_.notify_one();
  return absl::OkStatus();
}

void PreparationPool::Stop() {
  std::deque<std::function<void()>> dropped;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    dropped.swap(tasks_);
  }
  changed_.notify_all();
  dropped.clear();  // not under the lock, and before the join: what owns responders answers now
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void PreparationPool::WorkerMain() {
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace nibble::server
