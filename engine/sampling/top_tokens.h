// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The largest logits of a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace nibble::engine {

struct Candidate {
  float logit = 0.0F;
  int32_t token_id = 0;
};

// The order of everything that ranks tokens: larger logit first, ties by lower id.
inline bool RanksBefore(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token_id < b.token_id;
}

// The first in that order; {-inf, 0} when no logit is above -inf. NaN is skipped.
Candidate FindBest(std::span<const float> logits);

// The first `count` in that order, sorted; fewer when fewer logits are above -inf.
std::vector<Candidate> FindTop(std::span<const float> logits, size_t count);

}  // namespace nibble::engine
