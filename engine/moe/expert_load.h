// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How many tokens went to each expert of each layer.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

// A value: counts since the model was loaded. Layers without experts have zeros.
struct ExpertLoad {
  int64_t num_layers = 0;
  int64_t num_experts = 0;
  std::vector<uint64_t> tokens;  // [num_layers, num_experts]

  bool empty() const { return tokens.empty(); }
  uint64_t at(int64_t layer, int64_t expert) const {
    return tokens[static_cast<size_t>(layer * num_experts + expert)];
  }
  // Adds counts of the same shape; an empty value takes the other's.
  void Add(const ExpertLoad& other);
};

// JSON: {"num_layers": 4, "num_experts": 8, "tokens": [[...], ...]}. Parse: INVALID_ARGUMENT naming
// `where`, field, value and limit; other fields are not looked at.
std::string Serialize(const ExpertLoad& load);
absl::StatusOr<ExpertLoad> ParseExpertLoad(std::string_view json, std::string_view where);

// Counts while steps run. One thread adds, any thread reads.
class ExpertLoadCounter {
 public:
  ExpertLoadCounter(int64_t num_layers, int64_t num_experts);
  void Add(int64_t layer, int32_t expert, uint64_t tokens);
  ExpertLoad Read() const;

 private:
  const int64_t num_layers_;
  const int64_t num_experts_;
  std::unique_ptr<std::atomic<uint64_t>[]> tokens_;
};

}  // namespace nibble::engine
