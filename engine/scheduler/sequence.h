// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A request as the scheduler sees it: its tokens, and how far the model has got with them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/cache/block_table.h"
#include "engine/request/request.h"

namespace nibble::engine {

// What Scheduler::Add takes. Validated: fits the context, ids in range, max_tokens a plain number.
struct SequenceSpec {
  RequestId id = 0;
  std::vector<int32_t> prompt_token_ids;
  SamplingParams sampling;  // stop strings are the output side's business and are not read
  uint64_t seed = 0;
  int32_t priority = 0;
};

struct Sequence {
  RequestId id = 0;
  SamplingParams sampling;
  uint64_t seed = 0;
  int32_t priority = 0;
  uint64_t arrival = 0;            // order of Add
  std::vector<int32_t> token_ids;  // prompt, then generated tokens
  int64_t num_prompt_tokens = 0;
  std::vector<int32_t> banned_token_ids;  // until sampling.min_tokens are generated; sorted

  BlockTable block_table;
  // First tokens whose keys and values are in the blocks: now, and when the planned steps are done.
  int64_t num_computed_tokens = 0;
  int64_t num_planned_tokens = 0;  // >= num_computed_tokens
  int64_t num_found_tokens = 0;    // of the computed ones: in cached blocks when it was admitted
  bool awaits_token = false;       // a step under way samples its next token
  uint64_t admission = 0;          // number of the last one; 0 until first admitted

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  // To be planned. 1 for a sequence that decodes, 0 while it awaits its token; more while its
  // prompt (or, after preemption, what it had) is computed.
  int64_t num_remaining_tokens() const { return num_tokens() - num_planned_tokens; }
  std::span<const int32_t> prompt_ids() const {
    return std::span(token_ids).first(static_cast<size_t>(num_prompt_tokens));
  }
  std::span<const int32_t> output_ids() const {
    return std::span(token_ids).subspan(static_cast<size_t>(num_prompt_tokens));
  }
};

}  // namespace nibble::engine
