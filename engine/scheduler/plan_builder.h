// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Writes scheduled sequences as the flat arrays of a StepPlan.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/scheduler/sequence.h"
#include "engine/scheduler/step_plan.h"

namespace nibble::engine {

// Tokens of a sequence whose block table holds them.
struct Chunk {
  const Sequence* sequence = nullptr;
  int64_t first = 0;
  int64_t num_tokens = 0;
};

// A chunk that reaches its sequence's last token gets a sampling row; others do not.
StepPlan BuildStepPlan(const std::vector<Chunk>& chunks, int64_t block_size);

}  // namespace nibble::engine
