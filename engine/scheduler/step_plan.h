// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What one step of the model computes, as flat arrays: a value that can be serialized, so that the
// same plan drives every rank. Made by Scheduler::Plan(), executed by Executor::Begin and Finish.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "engine/request/request.h"

namespace nibble::engine {

// How to choose a token from one row of logits. Stateless: everything the choice depends on is
// here, so that a sequence recomputed after preemption, or on another rank, gets the same tokens.
struct SamplingRow {
  float temperature = 1.0F;
  float top_p = 1.0F;
  int32_t top_k = 0;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  uint64_t seed = 0;
  int64_t output_index =
      0;  // index of the token to be generated: with `seed`, the random number's counter
  int32_t logprobs = -1;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t>
      banned_token_ids;  // logit -inf: end-of-sequence and stop tokens before min_tokens
  // Only when a penalty is set, else empty:
  std::vector<int32_t> prompt_token_ids;
  std::vector<int32_t> output_token_ids;
};

struct StepPlan {
  // One entry per scheduled token, sequences one after another.
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;     // absolute position in the sequence
  std::vector<int32_t> slot_mapping;  // KV slot: block * block_size + offset

  // One entry per sequence.
  std::vector<int32_t> query_start;   // num_seqs + 1 entries: sequence s owns tokens
                                      // [query_start[s], query_start[s + 1])
  std::vector<int32_t> context_lens;  // KV tokens after this step
  std::vector<int32_t> block_tables;  // [num_seqs, max_blocks_per_seq], unused entries 0
  int32_t max_blocks_per_seq = 0;

  // One entry per token to be sampled (sequences whose prompt is not finished yet have none).
  std::vector<int32_t> logits_indices;  // index into token_ids
  std::vector<SamplingRow> sampling;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_seqs() const { return static_cast<int64_t>(context_lens.size()); }
  int64_t num_samples() const { return static_cast<int64_t>(logits_indices.size()); }
};

struct SampledToken {
  int32_t token_id = 0;
  // The model's fault (weights or activations overflowed): every logit of the row was NaN or
  // infinite, before anything the request asks for. Then the other members mean nothing.
  bool no_finite_logit = false;
  TokenLogprobs logprobs;  // filled when the row asked for them
};

struct StepOutput {
  std::vector<SampledToken> tokens;  // one per StepPlan::logits_indices, same order
};

}  // namespace nibble::engine
