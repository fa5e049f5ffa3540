// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Files of prompts: one JSON object a line. Empty lines are skipped, other members ignored. Errors
// are INVALID_ARGUMENT and name the line, what is there and what would be.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "client/load/request.h"

namespace nibble::client {

//   {"prompt": "Once upon a time", "output_tokens": 64}
//   {"prompt": [1, 5, 9]}                                     token ids, for completions
absl::StatusOr<std::vector<LoadRequest>> ParsePromptLines(std::string_view text,
                                                          int64_t default_output_tokens);

//   {"timestamp": 27.5, "input_tokens": 6758, "output_tokens": 500}      seconds; or a prompt
//   {"timestamp": 27500, "input_length": 6758, "output_length": 500}     milliseconds, as
//   Mooncake's
// Requests are sorted by time; the first one's becomes 0, the last one's is at most 1e9 seconds.
absl::StatusOr<std::vector<LoadRequest>> ParseTimedTrace(std::string_view text);

}  // namespace nibble::client
