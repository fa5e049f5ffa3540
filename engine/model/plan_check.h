// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Whether a step plan fits a model and its KV cache. Plans come from the scheduler, and to ranks
// over a wire: after this check no kernel can read or write outside its buffers, and no two threads
// can write one KV slot.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "engine/scheduler/step_plan.h"

namespace nibble::engine {

struct PlanLimits {
  int64_t vocab_size = 0;
  int64_t max_positions = 0;  // of the model
  int64_t num_blocks = 0;
  int64_t block_size = 0;
};

class PlanChecker {
 public:
  // INVALID_ARGUMENT, naming the entry, its value and the limit, unless
  //  - the arrays' lengths agree, and every sequence has at least one token;
  //  - token ids are in the vocabulary;
  //  - a sequence's tokens are the last ones of its context, at consecutive positions;
  //  - every block of a context is in the cache, and every slot is the one that the block table
  //    gives;
  //  - no slot is written twice;
  //  - logits_indices are tokens of the plan, ascending, each once.
  // The sampling rows are not read. Linear in the plan's size; allocates only when the cache grows.
  absl::Status Check(const StepPlan& plan, const PlanLimits& limits);

 private:
  absl::Status CheckSequence(const StepPlan& plan, int64_t seq_idx, const PlanLimits& limits);

  std::vector<uint64_t> written_;  // one bit per KV slot, all zero between calls
};

}  // namespace nibble::engine
