// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Log probabilities of the model's own distribution.
#pragma once

#include <cstdint>
#include <span>

#include "base/cpu_features.h"
#include "engine/request/request.h"

namespace nibble::engine {

// log softmax(logits) of `token_id` with its rank, and of the `num_top` most likely tokens. Ranks
// follow the order of RanksBefore, so that a token's rank is its place in the top list. +inf logits
// share all of the mass; NaN weighs nothing. A token without mass has log probability -inf.
TokenLogprobs ComputeLogprobs(std::span<const float> logits, int32_t token_id, int32_t num_top,
                              Isa isa);

}  // namespace nibble::engine
