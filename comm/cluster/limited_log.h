// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Log lines that a stranger can cause: a few, then one for many.
#pragma once

#include <chrono>
#include <mutex>
#include <string>

#include "base/log.h"

namespace nibble::comm {

// Thread-safe.
class LimitedLog {
 public:
  void Write(const std::string& line) {
    const std::lock_guard lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    if (now - begin_ >= kPeriod) {
      if (num_lines_ > kLines) {
        log::Warning("cluster: {} lines like these were not logged", num_lines_ - kLines);
      }
      begin_ = now;
      num_lines_ = 0;
    }
    if (++num_lines_ <= kLines) log::Warning("{}", line);
  }

 private:
  static constexpr int kLines = 5;
  static constexpr std::chrono::seconds kPeriod{10};

  std::mutex mutex_;
  // Guarded by mutex_:
  std::chrono::steady_clock::time_point begin_;
  int num_lines_ = 0;  // since then
};

}  // namespace nibble::comm
