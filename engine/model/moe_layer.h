// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The feed-forward half of a layer with experts, on one rank (PPMoE, arXiv:2304.11414; README.md
// has the drawing). Every rank routes all tokens, on the same bits, and computes the experts that
// it has; what it gives is summed over the ranks by one all-reduce. No token travels.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/model/grouped_linear.h"
#include "engine/model/linear.h"

namespace nibble::engine {

struct MoeWeights {
  Linear router;          // n = num_experts, dense float32; whole
  GroupedLinear gate_up;  // by slot of this rank; n = 2 * (the rank's channels of an expert)
  GroupedLinear down;     // n = hidden_size, to be summed over the ranks
  // The shared expert, which all tokens go to, cut over all ranks of the stage; without one, empty.
  Linear shared_gate_up;
  Linear shared_down;
  std::vector<float> shared_gate;  // [hidden_size]: its output is times sigmoid(shared_gate . x)

  bool has_shared_expert() const { return !shared_gate.empty(); }
  int64_t size_bytes() const;
  bool reorders() const;
};

}  // namespace nibble::engine
