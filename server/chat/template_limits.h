// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a chat template may use up.
#pragma once

#include <cstdint>

namespace nibble::server {

struct TemplateLimits {
  int64_t max_template_bytes = int64_t{1} << 20;
  int64_t max_output_bytes = int64_t{16} << 20;
  int64_t max_steps = 10'000'000;  // evaluated nodes, loop turns, list items, text walked or made
  int max_depth = 128;             // nested expressions, blocks and values
  // Of one rendering, on a clock that never goes back. A second line behind the steps: they bound
  // the work, this bounds what a slow or busy machine makes of it.
  int64_t max_milliseconds = 2000;
};

}  // namespace nibble::server
