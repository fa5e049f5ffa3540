// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// CPU lists as Linux and taskset write them: "0-3,8".
#pragma once

#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble {

// In the order given. INVALID_ARGUMENT for anything but numbers 0..1023, ranges that rise, and a
// CPU named twice.
absl::StatusOr<std::vector<int>> ParseCpuList(std::string_view text);

}  // namespace nibble
