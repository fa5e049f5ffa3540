// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/moe_layer.h"

namespace nibble::engine {

int64_t MoeWeights::size_bytes() const {
  return router.size_bytes() + gate_up.size_bytes() + down.size_bytes() +
         shared_gate_up.size_bytes() + shared_down.size_bytes() +
         static_cast<int64_t>(shared_gate.size() * sizeof(float));
}

bool MoeWeights::reorders() const {
  return gate_up.reorders() || down.reorders() || shared_gate_up.reorders() ||
         shared_down.reorders();
}

}  // namespace nibble::engine
