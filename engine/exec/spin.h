// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A short wait before a sleep: what comes within it costs no wake-up.
#pragma once

#include <chrono>
#include <thread>

namespace nibble::engine {

// About a wake-up's length: who waits for longer loses no more than that by sleeping.
inline constexpr std::chrono::microseconds kSpinTime{30};

// True when `done` came true within kSpinTime. Gives its CPU to whoever wants it meanwhile.
template <typename Done>
bool SpinUntil(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  while (!done()) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace nibble::engine
