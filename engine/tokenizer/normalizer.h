// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The "normalizer" of tokenizer.json: rewrites a text before it is cut.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "engine/tokenizer/json_node.h"
#include "engine/tokenizer/text_limit.h"

namespace nibble::engine {

// Immutable; thread-safe.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // `text` is valid UTF-8, and so is the result, which is within `limit`.
  absl::StatusOr<std::string> Apply(std::string_view text, const TextLimit& limit) const;

 private:
  // Stops early where the result may be longer than a small multiple of `text`.
  virtual absl::StatusOr<std::string> Rewrite(std::string_view text,
                                              const TextLimit& limit) const = 0;
};

// Null for a null node. An unknown type is refused by name.
absl::StatusOr<std::unique_ptr<Normalizer>> CreateNormalizer(const JsonNode& node);

}  // namespace nibble::engine
