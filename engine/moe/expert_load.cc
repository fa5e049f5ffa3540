// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/moe/expert_load.h"

#include "base/check.h"

namespace nibble::engine {

void ExpertLoad::Add(const ExpertLoad& other) {
  if (other.empty()) return;
  if (empty()) {
    *this = other;
    return;
  }
  NIBBLE_CHECK(num_layers == other.num_layers && num_experts == other.num_experts);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] += other.tokens[i];
}

ExpertLoadCounter::ExpertLoadCounter(int64_t num_layers, int64_t num_experts)
    : num_layers_(num_layers),
      num_experts_(num_experts),
      tokens_(new std::atomic<uint64_t>[static_cast<size_t>(num_layers * num_experts)]()) {}

void ExpertLoadCounter::Add(int64_t layer, int32_t expert, uint64_t tokens) {
  // One writer: no read-modify-write is needed.
  std::atomic<uint64_t>& count = tokens_[static_cast<size_t>(layer * num_experts_ + expert)];
  count.store(count.load(std::memory_order_relaxed) + tokens, std::memory_order_relaxed);
}

ExpertLoad ExpertLoadCounter::Read() const {
  ExpertLoad load{.num_layers = num_layers_, .num_experts = num_experts_, .tokens = {}};
  const auto size = static_cast<size_t>(num_layers_ * num_experts_);
  load.tokens.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    load.tokens.push_back(tokens_[i].load(std::memory_order_relaxed));
  }
  return load;
}

}  // namespace nibble::engine
