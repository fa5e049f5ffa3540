// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The "post_processor" of tokenizer.json: special tokens around a text.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "engine/tokenizer/json_node.h"

namespace nibble::engine {

struct PostProcessor {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

// Empty for a null node. An unknown type is refused by name.
absl::StatusOr<PostProcessor> CreatePostProcessor(const JsonNode& node);

}  // namespace nibble::engine
