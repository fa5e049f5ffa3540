// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Frames on their way from the thread that reads a rank's channel to the one that computes. The
// reader never waits; the other spins for some microseconds, then sleeps, so that a step that
// follows another begins at once and an idle rank costs nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

#include "comm/ranks/rank_hub.h"

namespace nibble::engine {

class FrameQueue {
 public:
  void Push(comm::Frame frame);
  // Nothing is given out any more, not even what waits.
  void Close();
  // The next frame; none when the queue is closed.
  std::optional<comm::Frame> Pop();

 private:
  std::atomic<int> num_waiting_{0};  // frames_.size(), and one more when closed
  std::mutex mutex_;
  std::condition_variable came_;
  // Guarded by mutex_:
  std::deque<comm::Frame> frames_;
  bool closed_ = false;
};

}  // namespace nibble::engine
