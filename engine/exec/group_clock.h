// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The time by which RankGroup judges who is silent, who hangs and when to try again. Tests have one
// of their own, which stands still while anybody has something to do.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>

namespace nibble::engine {

class GroupClock {
 public:
  using Time = std::chrono::steady_clock::time_point;

  virtual ~GroupClock() = default;
  virtual Time Now() const { return std::chrono::steady_clock::now(); }
  // Returns when `is_woken`, which is asked with the lock held after `changed` was notified, or it
  // is `until`.
  virtual void WaitUntil(std::unique_lock<std::mutex>* lock, std::condition_variable* changed,
                         Time until, const std::function<bool()>& is_woken) {
    changed->wait_until(*lock, until, is_woken);
  }
};

}  // namespace nibble::engine
