// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sizes as people type them.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace nibble::cli {

// "4294967296", "4GiB", "1.5G" (of 1024: K, M, G, T, also with iB), "4g" (of 1000: k, m, g, t), as
// vLLM has them. INVALID_ARGUMENT telling the form that is wanted.
absl::StatusOr<int64_t> ParseByteSize(std::string_view text);

}  // namespace nibble::cli
