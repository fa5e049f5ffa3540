// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fmt/core.h"

namespace nibble::client {

inline constexpr int64_t kMaxPrompts = 10'000'000;
inline constexpr int64_t kMaxTokens = int64_t{1} << 22;         // of a prompt, and of an answer
inline constexpr int64_t kMaxDatasetTokens = int64_t{1} << 30;  // of all prompts: 4 GiB
inline constexpr double kMaxSpanSeconds = 1e9;  // from the first request of a run to the last one
inline constexpr int64_t kMaxConcurrency = 1'000'000;

// A line naming option, value and limits for a value outside of low..high.
inline void CheckLimits(std::string_view option, int64_t value, int64_t low, int64_t high,
                        std::vector<std::string>* violations) {
  if (value < low || value > high) {
    violations->push_back(fmt::format("{} is {}, want {} to {}", option, value, low, high));
  }
}

}  // namespace nibble::client
