// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Log lines that a stranger can cause, and have a say in: a few, then one for many, and nothing in
// them that breaks a line, moves a terminal's cursor or is no text.
#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <string_view>

#include "base/log.h"

namespace nibble::comm {

// `text` with "\\x1b" in place of bytes that are not visible ASCII, cut where it is long.
inline std::string Printable(std::string_view text) {
  constexpr size_t kMaxBytes = 1000;
  std::string printable;
  for (const char c : text.substr(0, kMaxBytes)) {
    if (c >= ' ' && c <= '~') {
      printable += c;
    } else {
      printable += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  if (text.size() > kMaxBytes) printable += "...";
  return printable;
}

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
    if (++num_lines_ <= kLines) log::Warning("{}", Printable(line));
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
