// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Small sequences and a small scheduler's config, also random ones.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "engine/scheduler/scheduler.h"
#include "tests/testing/random.h"

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

// A pool that may be far too small for the sequences that run.
inline engine::SchedulerConfig RandomConfig(Random* random) {
  engine::SchedulerConfig config = Config();
  config.block_size = random->Int(1, 5);
  config.max_model_len = 60;
  config.num_blocks =
      (config.max_model_len + config.block_size - 1) / config.block_size + random->Int(0, 20);
  config.max_num_seqs = random->Int(1, 8);
  config.enable_chunked_prefill = random->Int(0, 3) != 0;
  config.max_num_batched_tokens =
      config.enable_chunked_prefill ? config.max_num_seqs + random->Int(0, 20) : 64;
  config.enable_prefix_caching = random->Int(0, 1) != 0;
  return config;
}

// For any of these configs. Few different prompts, so that prefixes are shared.
inline engine::SequenceSpec RandomSpec(Random* random, engine::RequestId id) {
  const int64_t num_prompt_tokens = random->Int(1, 30);
  const auto first_token = static_cast<int32_t>(random->Int(0, 2)) * 100;
  const int64_t max_tokens = random->Int(1, 30);
  const auto priority = static_cast<int32_t>(random->Int(0, 2));
  engine::SequenceSpec spec = Spec(id, Count(num_prompt_tokens, first_token), max_tokens, priority);
  spec.sampling.ignore_eos = random->Int(0, 1) != 0;
  spec.sampling.min_tokens = random->Int(0, max_tokens);
  if (random->Int(0, 3) == 0) spec.sampling.frequency_penalty = 0.5F;
  return spec;
}

inline std::vector<engine::RequestId> Ids(const engine::ScheduledStep& step) {
  std::vector<engine::RequestId> ids;
  for (const auto& entry : step.entries) ids.push_back(entry.id);
  return ids;
}

}  // namespace nibble::testing
