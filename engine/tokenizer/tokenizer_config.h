// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The parts of tokenizer_config.json that tokenization depends on.
#pragma once

#include <string_view>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/status.h"
#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/json_node.h"

namespace nibble::engine {

// The file's document; an empty object for an empty `text` (no such file).
absl::StatusOr<nlohmann::json> ParseTokenizerConfig(std::string_view text);

// "added_tokens_decoder": {"32000": {"content": "<|user|>", ...}}, by ascending id.
absl::StatusOr<std::vector<AddedToken>> ReadAddedTokensDecoder(const JsonNode& config);

// A token given as "</s>" or {"content": "</s>", ...}; "" when absent.
absl::StatusOr<std::string> ReadTokenName(const JsonNode& node);

}  // namespace nibble::engine
