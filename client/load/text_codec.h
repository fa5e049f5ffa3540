// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::client {

// A model's tokenizer: the server's own, or one that is loaded here.
class TextCodec {
 public:
  virtual ~TextCodec() = default;
  // Without special tokens.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text) = 0;
  virtual absl::StatusOr<std::string> Decode(std::span<const int32_t> ids) = 0;
  // Ids that random prompts may have.
  virtual absl::StatusOr<std::vector<int32_t>> PlainTokens() = 0;
};

}  // namespace nibble::client
