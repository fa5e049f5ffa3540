// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Progress of long work on standard error: one bar redrawn in place on a terminal, a line every
// tenth otherwise.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace nibble::cli {

class Progress {
 public:
  // `unit` is written after the counts ("MB", "tensors"). `divisor` scales both counts for display.
  Progress(std::string label, std::string unit, int64_t divisor = 1);
  ~Progress();  // ends the bar's line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Any thread, one at a time. `total` may grow.
  void Update(int64_t done, int64_t total);

 private:
  std::string label_;
  std::string unit_;
  int64_t divisor_;
  bool is_terminal_;
  int last_shown_ = -1;  // percent on a terminal, tenths otherwise
  bool line_open_ = false;
};

}  // namespace nibble::cli
