// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A RankGroup's time that passes only while all ranks of a ThreadHub wait, and then at once: a rank
// is silent because the test says so, never because the machine is slow.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>

#include "engine/exec/group_clock.h"
#include "tests/engine/exec/thread_hub.h"

namespace nibble::testing {

class GroupTime final : public engine::GroupClock {
 public:
  using Duration = std::chrono::steady_clock::duration;

  // Before the group starts; it passes from now on.
  void Watch(const ThreadHub* hub) {
    const std::lock_guard lock(mutex_);
    hub_ = hub;
    limit_ = Time::max();
  }
  void Stop() {
    const std::lock_guard lock(mutex_);
    limit_ = now_;
  }
  void Run() { RunUntil(Time::max()); }
  void RunFor(Duration time) { RunUntil(Now() + time); }
  // Returns when it has passed and all that follows from it is done; time stands still then.
  void Pass(Duration time) {
    RunFor(time);
    std::unique_lock lock(mutex_);
    settled_.wait(lock, [this] { return is_settled_; });
  }
  // As if the driver's process had been stopped that long.
  void Jump(Duration time) {
    const std::lock_guard lock(mutex_);
    now_ += time;
    limit_ = std::max(limit_, now_);
  }

  Time Now() const override {
    const std::lock_guard lock(mutex_);
    return now_;
  }
  void WaitUntil(std::unique_lock<std::mutex>* lock, std::condition_variable* changed, Time until,
                 const std::function<bool()>& is_woken) override {
    while (!changed->wait_for(*lock, std::chrono::microseconds(300), is_woken)) {
      if (Advance(until)) return;
    }
  }

 private:
  void RunUntil(Time limit) {
    const std::lock_guard lock(mutex_);
    limit_ = limit;
    is_settled_ = false;
  }
  // The group has nothing to do before `until`. True when it is that time.
  bool Advance(Time until) {
    const std::lock_guard lock(mutex_);
    if (now_ >= until) return true;
    if (!hub_->IsIdle()) return false;
    now_ = std::max(now_, std::min(until, limit_));
    if (now_ == limit_ && now_ < until) {
      is_settled_ = true;
      settled_.notify_all();
    }
    return now_ >= until;
  }

  mutable std::mutex mutex_;
  std::condition_variable settled_;
  // Guarded by mutex_:
  const ThreadHub* hub_ = nullptr;
  Time now_ = std::chrono::steady_clock::now();
  Time limit_ = Time::max();
  bool is_settled_ = false;
};

}  // namespace nibble::testing
