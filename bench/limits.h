// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Checks of options, one line for each violation.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::bench {

// Every value in low..high, and at least one value.
void CheckLimits(std::string_view option, const std::vector<int64_t>& values, int64_t low,
                 int64_t high, std::vector<std::string>* violations);
void CheckNumber(std::string_view option, double value, double low, double high,
                 std::vector<std::string>* violations);

}  // namespace nibble::bench
