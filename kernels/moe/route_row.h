// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The routing of one token, once per instruction set. Included by files compiled for one
// instruction set: no library headers that emit code.
#pragma once

#include <cstdint>

namespace nibble::kernels {

struct RouteRow {
  int64_t num_experts = 0;
  int64_t num_experts_per_tok = 0;  // k
  bool renormalize = true;
  const float* logits = nullptr;  // [num_experts]
  int32_t* keys = nullptr;        // scratch: [num_experts rounded up to 16], aligned to 64 bytes
  int32_t* expert_ids = nullptr;  // [k]
  float* weights = nullptr;       // [k]
};

namespace ref {
void RouteToken(const RouteRow& row);
}
namespace avx2 {
void RouteToken(const RouteRow& row);
}
namespace avx512vnni {
void RouteToken(const RouteRow& row);
}

}  // namespace nibble::kernels
