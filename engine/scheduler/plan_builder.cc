// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/scheduler/plan_builder.h"

#include <algorithm>

namespace nibble::engine {
namespace {

SamplingRow MakeSamplingRow(const Sequence& sequence) {
  const SamplingParams& sampling = sequence.sampling;
  SamplingRow row{.temperature = sampling.temperature,
                  .top_p = sampling.top_p,
                  .top_k = sampling.top_k,
                  .min_p = sampling.min_p,
                  .repetition_penalty = sampling.repetition_penalty,
                  .presence_penalty = sampling.presence_penalty,
                  .frequency_penalty = sampling.frequency_penalty,
                  .seed = sequence.seed,
                  .output_index = sequence.num_output_tokens(),
                  .logprobs = sampling.logprobs,
                  .logit_bias = sampling.logit_bias};
  if (sequence.num_output_tokens() < sampling.min_tokens) {
    row.banned_token_ids = sequence.banned_token_ids;
  }
  if (sampling.has_penalties()) {
    row.prompt_token_ids.assign(sequence.prompt_ids().begin(), sequence.prompt_ids().end());
    row.output_token_ids.assign(sequence.output_ids().begin(), sequence.output_ids().end());
  }
  return row;
}

void AppendTokens(const Chunk& chunk, int64_t block_size, StepPlan* plan) {
  const Sequence& sequence = *chunk.sequence;
  const int64_t end = chunk.first + chunk.num_tokens;
  for (int64_t position = chunk.first; position < end; ++position) {
    plan->token_ids.push_back(sequence.token_ids[static_cast<size_t>(position)]);
    plan->positions.push_back(static_cast<int32_t>(position));
    plan->slot_mapping.push_back(
        static_cast<int32_t>(sequence.block_table.Slot(position, block_size)));
  }
  plan->query_start.push_back(static_cast<int32_t>(plan->token_ids.size()));
  plan->context_lens.push_back(static_cast<int32_t>(end));
  if (end == sequence.num_tokens()) {
    plan->logits_indices.push_back(static_cast<int32_t>(plan->num_tokens() - 1));
    plan->sampling.push_back(MakeSamplingRow(sequence));
  }
}

}  // namespace

StepPlan BuildStepPlan(const std::vector<Chunk>& chunks, int64_t block_size) {
  StepPlan plan;
  plan.query_start.push_back(0);
  for (const Chunk& chunk : chunks) AppendTokens(chunk, block_size, &plan);

  const auto num_blocks = [&](int32_t context_len) {
    return (int64_t{context_len} + block_size - 1) / block_size;
  };
  int64_t max_blocks = 0;
  for (const int32_t context_len : plan.context_lens) {
    max_blocks = std::max(max_blocks, num_blocks(context_len));
  }
  plan.max_blocks_per_seq = static_cast<int32_t>(max_blocks);
  plan.block_tables.assign(static_cast<size_t>(plan.num_seqs() * max_blocks), 0);
  for (size_t s = 0; s < chunks.size(); ++s) {
    const auto used = chunks[s].sequence->block_table.blocks().first(
        static_cast<size_t>(num_blocks(plan.context_lens[s])));
    std::ranges::copy(used, plan.block_tables.begin() + static_cast<int64_t>(s) * max_blocks);
  }
  return plan;
}

}  // namespace nibble::engine
