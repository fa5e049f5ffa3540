// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tells own stalls from a peer's silence: a process that was stopped for a while finds that nobody
// was heard, although all that came is still unread.
#pragma once

#include <algorithm>
#include <chrono>

namespace nibble::comm {

class SilenceWatch {
 public:
  using Clock = std::chrono::steady_clock;

  explicit SilenceWatch(std::chrono::milliseconds interval) : interval_(interval) {}

  // When the caller, which sleeps now, has to look again at the latest.
  Clock::time_point NextLook() {
    planned_ = Clock::now() + interval_;
    return planned_;
  }
  // Called when it woke: how long this process was stalled, to be forgiven to the peers.
  Clock::duration Stall() const {
    const Clock::duration late = Clock::now() - planned_;
    return late > interval_ ? late : Clock::duration::zero();
  }

 private:
  const std::chrono::milliseconds interval_;
  Clock::time_point planned_ = Clock::now();
};

}  // namespace nibble::comm
