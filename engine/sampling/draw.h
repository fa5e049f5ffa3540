// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The random choice of one token from adjusted logits.
#pragma once

#include <cstdint>
#include <span>

#include "base/cpu_features.h"
#include "engine/sampling/top_tokens.h"
#include "engine/scheduler/step_plan.h"

namespace nibble::engine {

// Draws from softmax(logits / temperature) cut by min_p, then top_k (exactly k tokens, ties by
// lower id), then top_p (the smallest set of the most likely tokens that holds at least top_p of
// what the other two left). `best` is FindBest(logits), with a finite logit. `uniform` in (0, 1).
int32_t DrawToken(std::span<const float> logits, const Candidate& best, const SamplingRow& params,
                  float uniform, Isa isa);

}  // namespace nibble::engine
