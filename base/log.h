// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The log: lines on standard error, so that standard output carries results only.
//   log::Info("loaded {} tensors in {:.1f} s", count, seconds);
// Thread-safe. spdlog stays behind log.cc because its headers cost seconds per source.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "fmt/core.h"

namespace nibble::log {

enum class Level { kDebug, kInfo, kWarning, kError, kOff };

// Lines below `level` are dropped before formatting. Default: kInfo.
void SetLevel(Level level);
bool Enabled(Level level);
// Parses "debug", "info", "warning", "error" or "off"; false when `name` is none of these.
bool ParseLevel(std::string_view name, Level* level);

void Write(Level level, const std::string& message);

template <typename... Args>
void Debug(fmt::format_string<Args...> format, Args&&... args) {
  if (Enabled(Level::kDebug))
    Write(Level::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void Info(fmt::format_string<Args...> format, Args&&... args) {
  if (Enabled(Level::kInfo)) Write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void Warning(fmt::format_string<Args...> format, Args&&... args) {
  if (Enabled(Level::kWarning)) {
    Write(Level::kWarning, fmt::format(format, std::forward<Args>(args)...));
  }
}
template <typename... Args>
void Error(fmt::format_string<Args...> format, Args&&... args) {
  if (Enabled(Level::kError))
    Write(Level::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nibble::log
