// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Which experts a token goes to, and with what weight (Mixtral, arXiv:2401.04088, equation 1):
//
//   p = softmax(logits) over all experts;  the k experts of the largest p;
//   renormalize: weight_j = p_j / sum of the k chosen p
//
// in float32. Equal logits: the expert with the lower number first. The k chosen ones come in
// falling order of their logits. A NaN counts as -inf when choosing; a row with a NaN, or whose
// largest logit is infinite, has NaN weights: ids are in range whatever the activations were.
//
// A row depends on that row alone and has the same bits on every instruction set: ranks route by
// themselves and must agree. exp is Exp of kernels/device/math_avx512.h; without renormalize the
// sum over all experts is of lanes e mod 16, halves of which are then added onto each other.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/thread_pool.h"

namespace nibble::kernels {

struct RouteArgs {
  int64_t num_tokens = 0;
  int64_t num_experts = 0;          // 1..kMaxExperts
  int64_t num_experts_per_tok = 0;  // k, 1..num_experts
  bool renormalize = true;
  const float* logits = nullptr;  // [num_tokens, num_experts]
  int32_t* expert_ids = nullptr;  // [num_tokens, k]
  float* weights = nullptr;       // [num_tokens, k]
};
inline constexpr int64_t kMaxExperts = 1024;

void Route(const RouteArgs& args, Isa isa, ThreadPool* pool);

}  // namespace nibble::kernels
