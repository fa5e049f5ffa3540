// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Chooses a token from one row of logits. Pure: the same row, parameters and counter give the same
// token anywhere.
#pragma once

#include <cstdint>
#include <span>

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "engine/scheduler/step_plan.h"

namespace nibble::engine {

// Uniform float in (0, 1) from Philox4x32-10 (Salmon et al., SC'11) keyed by `seed`, counter
// `index`.
float UniformFromCounter(uint64_t seed, uint64_t index);

// Order of operations, as vLLM: log probabilities of the raw logits; bias and bans; repetition,
// frequency and presence penalties; greedy choice if temperature is 0 (ties: lowest id);
// temperature; min_p; top_k; top_p; draw. `logits` [vocab_size] is overwritten. NaN logits never
// win. A row without a finite logit is reported as such (SampledToken::no_finite_logit); one that
// only the request's own bans empty gives token 0.
// All instruction sets choose the same token.
SampledToken SampleRow(std::span<float> logits, const SamplingRow& row, Isa isa = Isa::kRef);

// All rows of a step, spread over the pool. `logits` [rows.size(), vocab_size] is overwritten.
StepOutput SampleRows(float* logits, int64_t vocab_size, std::span<const SamplingRow> rows,
                      ThreadPool* pool, Isa isa = Isa::kRef);

}  // namespace nibble::engine
