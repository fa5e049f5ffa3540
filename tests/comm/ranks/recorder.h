// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// An observer that keeps what it is told, for tests to wait for.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "comm/ranks/rank_hub.h"

namespace nibble::comm {

class Recorder : public RankHub::Observer {
 public:
  struct Event {
    enum class Kind { kUp, kFrame, kDown };
    Kind kind;
    int rank;
    std::string text;  // payload, or why it is down
    uint32_t type = 0;
    LossReason reason = LossReason::kFailed;  // it is down
  };
  using Kind = Event::Kind;

  void OnUp(int rank) override { Add({.kind = Kind::kUp, .rank = rank, .text = {}}); }
  void OnFrame(int rank, Frame frame) override {
    Add({.kind = Kind::kFrame, .rank = rank, .text = std::move(frame.payload), .type = frame.type});
  }
  void OnDown(int rank, LossReason reason, const std::string& why) override {
    Add({.kind = Kind::kDown, .rank = rank, .text = why, .reason = reason});
  }

  // The first event of this kind and rank that no earlier call returned. Long enough for a slow
  // machine; "(nothing came)" is no text that a test expects.
  Event Next(Kind kind, int rank) {
    std::unique_lock lock(mutex_);
    Event found{.kind = kind, .rank = rank, .text = "(nothing came)"};
    changed_.wait_for(lock, std::chrono::seconds(60), [&] {
      const auto at = std::find_if(events_.begin(), events_.end(), [&](const Event& event) {
        return event.kind == kind && event.rank == rank;
      });
      if (at == events_.end()) return false;
      found = std::move(*at);
      events_.erase(at);
      return true;
    });
    return found;
  }
  std::vector<Event> events() const {
    const std::lock_guard lock(mutex_);
    return events_;
  }
  // Called with every event, on the hub's thread, before it is kept. Set before Start().
  std::function<void(const Event&)> on_event;

 private:
  void Add(Event event) {
    if (on_event) on_event(event);
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Event> events_;  // guarded by mutex_
};

}  // namespace nibble::comm
