// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "fmt/core.h"

namespace nibble::cli {

Progress::Progress(std::string label, std::string unit, int64_t divisor)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      divisor_(divisor),
      is_terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (line_open_) std::fputc('\n', stderr);
}

void Progress::Update(int64_t done, int64_t total) {
  if (total <= 0) return;
  const int percent = static_cast<int>(std::clamp<int64_t>(done * 100 / total, 0, 100));
  const int step = is_terminal_ ? percent : percent / 10;
  if (step == last_shown_) return;
  last_shown_ = step;
  const std::string counts = fmt::format("{}/{} {}", done / divisor_, total / divisor_, unit_);
  if (is_terminal_) {
    constexpr int kWidth = 30;
    const int filled = percent * kWidth / 100;
    const std::string bar(static_cast<size_t>(filled), '#');
    fmt::print(stderr, "\r{} [{:<{}}] {:3}% {}", label_, bar, kWidth, percent, counts);
    line_open_ = true;
  } else {
    fmt::print(stderr, "{}: {:3}% ({})\n", label_, percent, counts);
  }
  std::fflush(stderr);
}

}  // namespace nibble::cli
