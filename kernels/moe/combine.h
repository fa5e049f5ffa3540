// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a token's experts gave, weighted and summed in the order in which they were chosen:
//
//   out[t] = sum_j weights[t, j] * y[row_of[t, j]]      j = 0..k - 1 in order, -1 left out
//
// float32: the first term is a product, each further one a fused multiply-add. A token without a
// row here gets zeros. The bits of out[t] depend on the token alone, and are the same on every
// instruction set.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/thread_pool.h"

namespace nibble::kernels {

struct CombineArgs {
  int64_t num_tokens = 0;
  int64_t num_experts_per_tok = 0;  // k >= 1
  int64_t hidden = 0;
  const float* weights = nullptr;   // [num_tokens, k]
  const int32_t* row_of = nullptr;  // [num_tokens, k], -1: no row
  const float* y = nullptr;         // [rows, y_stride]
  int64_t y_stride = 0;
  // Adds to `out` instead of writing it: the shared expert's output is there already. Then the
  // first term too is a fused multiply-add.
  bool accumulate = false;
  float* out = nullptr;  // [num_tokens, out_stride]
  int64_t out_stride = 0;
};

void Combine(const CombineArgs& args, Isa isa, ThreadPool* pool);

}  // namespace nibble::kernels
