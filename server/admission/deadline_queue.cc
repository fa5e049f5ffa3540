// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/admission/deadline_queue.h"

namespace nibble::server {

using std::chrono::steady_clock;

DeadlineQueue::DeadlineQueue() : thread_([this] { Run(); }) {}

DeadlineQueue::~DeadlineQueue() { Stop(); }

void DeadlineQueue::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

DeadlineQueue::Key DeadlineQueue::Add(TimePoint deadline, std::function<void()> on_expiry) {
  const std::lock_guard lock(mutex_);
  const Key key(deadline, next_id_++);
  const auto place = waiting_.emplace(key, std::move(on_expiry)).first;
  if (place == waiting_.begin()) wake_.notify_one();
  return key;
}

void DeadlineQueue::Remove(const Key& key) {
  std::function<void()> released;  // destroyed after the lock: it may own things that call us
  const std::lock_guard lock(mutex_);
  const auto place = waiting_.find(key);
  if (place == waiting_.end()) return;
  released = std::move(place->second);
  waiting_.erase(place);
}

void DeadlineQueue::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    if (waiting_.empty()) {
      wake_.wait(lock);
      continue;
    }
    const TimePoint next = waiting_.begin()->first.first;
    if (next > steady_clock::now()) {
      wake_.wait_until(lock, next);
      continue;
    }
    {
      auto expired = waiting_.extract(waiting_.begin());
      lock.unlock();
      expired.mapped()();
    }
    lock.lock();
  }
}

}  // namespace nibble::server
