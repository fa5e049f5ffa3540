// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Time as the engine sees it: monotonic, and replaceable in tests.
#pragma once

#include <cstdint>

namespace nibble {

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds since an arbitrary start; never goes back. Thread-safe.
  virtual int64_t NowNs() const = 0;

  // The machine's monotonic clock; lives for the whole process.
  static const Clock& Monotonic();
};

}  // namespace nibble
