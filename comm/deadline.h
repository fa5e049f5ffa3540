// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A point in time by which a wait must end. Every wait of this folder has one.
#pragma once

#include <chrono>
#include <cstdint>

namespace nibble::comm {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline After(std::chrono::nanoseconds timeout) {
    return Deadline(Clock::now() + timeout);
  }
  bool Passed() const { return Clock::now() >= at_; }
  // Zero once it has passed.
  std::chrono::nanoseconds Remaining() const {
    const auto left = at_ - Clock::now();
    return left > Clock::duration::zero() ? left : Clock::duration::zero();
  }
  Clock::time_point at() const { return at_; }

 private:
  explicit Deadline(Clock::time_point at) : at_(at) {}
  Clock::time_point at_;
};

}  // namespace nibble::comm
