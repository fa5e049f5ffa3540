// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// JSON from files and requests, bounded before it is believed: size and depth.
#pragma once

#include <cstddef>
#include <string_view>

#include "nlohmann/json.hpp"

#include "base/status.h"

namespace nibble {

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  int max_depth = 64;
};

// Parses `text` (UTF-8). INVALID_ARGUMENT with byte position for malformed text, invalid UTF-8, a
// trailing value, and for whatever exceeds `limits`. Of keys that repeat, the last one counts.
// Never throws.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const JsonLimits& limits = {});

}  // namespace nibble
