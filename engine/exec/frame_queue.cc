// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/frame_queue.h"

#include <chrono>
#include <utility>

#include "engine/exec/spin.h"

namespace nibble::engine {

void FrameQueue::Push(comm::Frame frame) {
  {
    const std::lock_guard lock(mutex_);
    frames_.push_back(std::move(frame));
    num_waiting_.fetch_add(1, std::memory_order_release);
  }
  came_.notify_one();
}

void FrameQueue::Close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    num_waiting_.fetch_add(1, std::memory_order_release);
  }
  came_.notify_one();
}

std::optional<comm::Frame> FrameQueue::Pop() {
  SpinUntil([this] { return num_waiting_.load(std::memory_order_acquire) > 0; });
  std::unique_lock lock(mutex_);
  came_.wait(lock, [this] { return closed_ || !frames_.empty(); });
  if (closed_) return std::nullopt;
  comm::Frame frame = std::move(frames_.front());
  frames_.pop_front();
  num_waiting_.fetch_sub(1, std::memory_order_relaxed);
  return frame;
}

}  // namespace nibble::engine
