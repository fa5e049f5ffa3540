// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How tokens of one request are chosen, in native types. The front end fills it; Validate()
// range-checks every field.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble::engine {

struct SamplingLimits {
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;
  int max_logprobs = 20;
  int max_stop_strings = 16;
  int max_stop_bytes = 1024;  // per stop string
  int max_stop_token_ids = 256;
  int max_logit_bias = 1024;
};

// max_tokens of a client that gave none: as many tokens as the context leaves. Engine::Submit turns
// it into that number; an explicit max_tokens beyond the context is refused there.
inline constexpr int64_t kFillContext = std::numeric_limits<int64_t>::max();

// Defaults and meaning as vLLM's SamplingParams.
struct SamplingParams {
  int64_t max_tokens = 16;  // generated tokens at most; 1..max_model_len, or kFillContext
  int64_t min_tokens =
      0;  // no end of sequence, stop token or stop string before this many; 0..max_tokens
  float temperature = 1.0F;                           // 0..2 (greedy at 0)
  float top_p = 1.0F;                                 // (0, 1]
  int32_t top_k = 0;                                  // 0: off
  float min_p = 0.0F;                                 // 0..1, relative to the most likely token
  float repetition_penalty = 1.0F;                    // (0, 2]: prompt and generated tokens
  float presence_penalty = 0.0F;                      // -2..2: generated tokens
  float frequency_penalty = 0.0F;                     // -2..2: generated tokens, per occurrence
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, -100..100; ids distinct
  std::optional<uint64_t> seed;                       // unset: the engine draws one
  std::vector<std::string> stop;  // text that ends generation; not empty strings
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;
  // -1: none. k >= 0: the sampled token's log probability and those of the k most likely tokens.
  // Log probabilities are of the model's distribution before temperature, penalties and truncation
  // (as vLLM's "raw_logprobs").
  int32_t logprobs = -1;

  bool greedy() const { return temperature == 0.0F; }
  bool has_penalties() const {
    return repetition_penalty != 1.0F || presence_penalty != 0.0F || frequency_penalty != 0.0F;
  }
  // INVALID_ARGUMENT listing every violation, each with value and limit (NaN violates every range).
  absl::Status Validate(const SamplingLimits& limits) const;
};

}  // namespace nibble::engine
