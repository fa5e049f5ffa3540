// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/limits.h"

#include "fmt/format.h"

namespace nibble::bench {

void CheckLimits(std::string_view option, const std::vector<int64_t>& values, int64_t low,
                 int64_t high, std::vector<std::string>* violations) {
  if (values.empty()) violations->push_back(fmt::format("{} is empty", option));
  for (const int64_t value : values) {
    if (value < low || value > high) {
      violations->push_back(fmt::format("{} is {}, want {} to {}", option, value, low, high));
    }
  }
}

void CheckNumber(std::string_view option, double value, double low, double high,
                 std::vector<std::string>* violations) {
  if (!(value >= low && value <= high)) {  // NaN too
    violations->push_back(fmt::format("{} is {}, want {} to {}", option, value, low, high));
  }
}

}  // namespace nibble::bench
