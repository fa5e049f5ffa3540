// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Small sequences and a small scheduler's config.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "engine/scheduler/scheduler.h"

namespace nibble::testing {

using Tokens = std::vector<int32_t>;

inline constexpr int32_t kVocabSize = 1000;

inline engine::SchedulerConfig Config() {
  return {.max_num_seqs = 8,
          .max_num_batched_tokens = 32,
          .num_blocks = 64,
          .block_size = 4,
          .max_model_len = 128,
          .eos_token_ids = {0}};
}

inline Tokens Count(int64_t n, int32_t first = 1) {
  Tokens tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

inline engine::SequenceSpec Spec(engine::RequestId id, Tokens prompt, int64_t max_tokens,
                                 int32_t priority = 0) {
  return {.id = id,
          .prompt_token_ids = std::move(prompt),
          .sampling = {.max_tokens = max_tokens},
          .seed = id * 1000,
          .priority = priority};
}

inline std::vector<engine::RequestId> Ids(const engine::ScheduledStep& step) {
  std::vector<engine::RequestId> ids;
  for (const auto& entry : step.entries) ids.push_back(entry.id);
  return ids;
}

}  // namespace nibble::testing
