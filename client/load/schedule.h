// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which request starts when: planned arrivals (open loop) under a limit of running ones (closed
// loop). Knows no clock and no sockets: times are nanoseconds since the start of the run, given by
// whoever asks.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace nibble::client {

class Schedule {
 public:
  struct Start {
    size_t idx = 0;
    int64_t arrival_ns = 0;
    int64_t ready_ns = 0;  // arrived, and a place was free: the time at which it should be sent
  };
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  // `arrivals_ns` do not fall. `max_concurrency` 0: no limit.
  Schedule(std::vector<int64_t> arrivals_ns, int64_t max_concurrency)
      : arrivals_ns_(std::move(arrivals_ns)),
        limited_(max_concurrency > 0),
        free_since_ns_(static_cast<size_t>(max_concurrency)) {}

  // The next request, if it is time for it.
  std::optional<Start> TakeDue(int64_t now_ns) {
    if (NextNs() > now_ns) return std::nullopt;
    Start start{.idx = next_, .arrival_ns = arrivals_ns_[next_], .ready_ns = NextNs()};
    if (limited_) free_since_ns_.pop_front();
    ++next_;
    ++running_;
    return start;
  }
  // When TakeDue has one, if nothing ends meanwhile.
  int64_t NextNs() const {
    if (next_ == arrivals_ns_.size() || (limited_ && free_since_ns_.empty())) return kNever;
    const int64_t arrival_ns = arrivals_ns_[next_];
    return limited_ && free_since_ns_.front() > arrival_ns ? free_since_ns_.front() : arrival_ns;
  }
  void OnEnd(int64_t now_ns) {
    if (limited_) free_since_ns_.push_back(now_ns);
    --running_;
  }
  // Nothing starts any more.
  void Stop() { next_ = arrivals_ns_.size(); }

  size_t size() const { return arrivals_ns_.size(); }
  int64_t running() const { return running_; }
  bool done() const { return next_ == arrivals_ns_.size() && running_ == 0; }

 private:
  std::vector<int64_t> arrivals_ns_;
  bool limited_;
  std::deque<int64_t> free_since_ns_;  // places, the one that is free for longest first
  size_t next_ = 0;
  int64_t running_ = 0;
};

}  // namespace nibble::client
