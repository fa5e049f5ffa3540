// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "fmt/core.h"

namespace nibble::cli {

Progress::Progress(std::string label, std::string unit, const ProgressOptions& options)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      options_(options),
      is_terminal_(isatty(fileno(options.out)) == 1),
      last_shown_(is_terminal_ ? -1 : 0),
      last_line_ns_(options.clock->NowNs()) {}

Progress::~Progress() {
  if (is_terminal_ && any_shown_) std::fputc('\n', options_.out);
}

bool Progress::WantsLine(int tenths, bool complete) {
  constexpr int64_t kMinIntervalNs = 2'000'000'000;
  if (tenths == last_shown_) return false;
  const int64_t now_ns = options_.clock->NowNs();
  if (now_ns - last_line_ns_ < kMinIntervalNs && !(complete && any_shown_)) return false;
  last_line_ns_ = now_ns;
  return true;
}

// ", 3 min left"; empty while there is no pace to tell it from.
std::string Progress::Remaining(int64_t done, int64_t total) const {
  if (!options_.show_remaining || done <= first_done_ || done >= total) return "";
  const auto elapsed_ns = static_cast<double>(options_.clock->NowNs() - first_ns_);
  const double seconds = elapsed_ns * 1e-9 * static_cast<double>(total - done) /
                         static_cast<double>(done - first_done_);
  if (seconds >= 3600.0) return fmt::format(", {:.1f} h left", seconds / 3600.0);
  if (seconds >= 100.0) return fmt::format(", {:.0f} min left", seconds / 60.0);
  return fmt::format(", {:.0f} s left", seconds);
}

void Progress::Update(int64_t done, int64_t total, std::string_view detail) {
  if (total <= 0) return;
  if (first_done_ < 0) {
    first_done_ = done;
    first_ns_ = options_.clock->NowNs();
  }
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const int percent = static_cast<int>(std::clamp(share * 100, 0.0, 100.0));
  const int step = is_terminal_ ? percent : percent / 10;
  const bool same = step == last_shown_ && detail == detail_;
  if (is_terminal_ ? same : !WantsLine(step, done >= total)) return;
  last_shown_ = step;
  detail_ = detail;
  any_shown_ = true;
  std::string counts =
      fmt::format("{}/{} {}", done / options_.divisor, total / options_.divisor, unit_);
  if (!detail.empty()) counts += fmt::format(", {}", detail);
  counts += Remaining(done, total);
  std::string text;
  if (is_terminal_) {
    constexpr int kWidth = 30;
    const std::string bar(static_cast<size_t>(percent * kWidth / 100), '#');
    // The rest of the line is erased: the text before may have been longer.
    text = fmt::format("\r{} [{:<{}}] {:3}% {}\x1b[K", label_, bar, kWidth, percent, counts);
  } else {
    text = fmt::format("{}: {:3}% ({})\n", label_, percent, counts);
  }
  std::fputs(text.c_str(), options_.out);
  std::fflush(options_.out);
}

}  // namespace nibble::cli
