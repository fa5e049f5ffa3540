// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Progress of long work: one bar redrawn in place on a terminal, now and then a line otherwise.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace nibble::cli {

struct ProgressOptions {
  int64_t divisor = 1;          // scales both counts for display
  bool show_remaining = false;  // time left, at the pace since the first update
  std::FILE* out = stderr;
  const Clock* clock = &Clock::Monotonic();
};

// On a terminal every percent and every change of detail. Otherwise a line for a tenth of the work,
// but none within two seconds of the one before (or of the start), so that short work leaves
// nothing in a log; and a last one at the end if there was any.
class Progress {
 public:
  // `unit` is written after the counts ("MB", "tensors").
  Progress(std::string label, std::string unit, const ProgressOptions& options = {});
  ~Progress();  // ends the bar's line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Any thread, one at a time. `total` may grow. `detail` is written after the counts.
  void Update(int64_t done, int64_t total, std::string_view detail = {});

 private:
  bool WantsLine(int tenths, bool complete);
  std::string Remaining(int64_t done, int64_t total) const;

  std::string label_;
  std::string unit_;
  ProgressOptions options_;
  bool is_terminal_;
  int last_shown_;  // percent on a terminal, tenths otherwise; -1: none
  int64_t last_line_ns_;
  bool any_shown_ = false;
  std::string detail_;       // shown last
  int64_t first_done_ = -1;  // of the first update; -1: none yet
  int64_t first_ns_ = 0;
};

}  // namespace nibble::cli
