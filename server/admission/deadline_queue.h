// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Calls back when a request's time is over, on a thread of its own, so that a request ends in time
// also while the engine computes a long step or waits for a rank.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

namespace nibble::server {

// Thread-safe.
class DeadlineQueue {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  using Key = std::pair<TimePoint, uint64_t>;

  DeadlineQueue();
  ~DeadlineQueue();  // Stop()s
  DeadlineQueue(const DeadlineQueue&) = delete;
  DeadlineQueue& operator=(const DeadlineQueue&) = delete;

  // `on_expiry` is called once, without a lock of ours, unless Remove comes first. It must not
  // block.
  Key Add(TimePoint deadline, std::function<void()> on_expiry);
  // A call that has begun goes on.
  void Remove(const Key& key);
  // Nothing is called back from now on. Idempotent; not from a call back.
  void Stop();

 private:
  void Run();

  std::mutex mutex_;  // guards all below but thread_
  std::condition_variable wake_;
  std::map<Key, std::function<void()>> waiting_;
  uint64_t next_id_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace nibble::server
