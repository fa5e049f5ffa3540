// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a stream has to write: gRPC takes one message at a time and wants it kept until it is
// written. Not thread-safe; the stream's mutex guards it.
#pragma once

#include <cstddef>
#include <deque>
#include <utility>

namespace nibble::comm {

// A peer that leaves so much unread is cut off.
inline constexpr size_t kMaxOutboxBytes = size_t{512} << 20;

template <typename Message>
class Outbox {
 public:
  // True: nothing is being written, so in_flight() is to be written now.
  bool Add(Message message) {
    const size_t num_bytes = message.ByteSizeLong();
    waiting_bytes_ += num_bytes;
    waiting_.push_back({std::move(message), num_bytes});
    return !writing_ && TakeNext();
  }
  // in_flight() was written. True: the next one is to be written now.
  bool Written() {
    writing_ = false;
    return TakeNext();
  }
  const Message* in_flight() const { return &in_flight_; }
  bool empty() const { return !writing_ && waiting_.empty(); }
  size_t waiting_bytes() const { return waiting_bytes_; }
  void Clear() {  // but for what is being written
    waiting_.clear();
    waiting_bytes_ = 0;
  }

 private:
  bool TakeNext() {
    if (waiting_.empty()) return false;
    in_flight_ = std::move(waiting_.front().first);
    waiting_bytes_ -= waiting_.front().second;
    waiting_.pop_front();
    writing_ = true;
    return true;
  }

  std::deque<std::pair<Message, size_t>> waiting_;
  size_t waiting_bytes_ = 0;
  Message in_flight_;
  bool writing_ = false;
};

}  // namespace nibble::comm
