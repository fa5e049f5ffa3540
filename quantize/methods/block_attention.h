// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Causal attention of one sequence in float, and its gradient. The probabilities are computed anew
// for the gradient, so that memory grows with the tokens, not with their square.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace nibble::quantize {

// Rows of tokens 0..num_tokens-1; positions are the row numbers.
struct AttentionInputs {
  int64_t num_tokens = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t sliding_window = 0;  // positions a token attends to, its own included; 0: all before it
  const float* q = nullptr;    // [num_tokens, num_heads * head_dim], after RoPE
  const float* k = nullptr;    // [num_tokens, num_kv_heads * head_dim], after RoPE
  const float* v = nullptr;    // [num_tokens, num_kv_heads * head_dim]
};

// out [num_tokens, num_heads * head_dim] = softmax(q k^T / sqrt(head_dim)) v.
void Attend(const AttentionInputs& inputs, float* out, ThreadPool* pool);

// Gradients of q, k and v (shaped as these; overwritten) from d_out, the gradient of `out`.
struct AttentionGradients {
  float* q = nullptr;
  float* k = nullptr;
  float* v = nullptr;
};
void AttendBackward(const AttentionInputs& inputs, const float* d_out,
                    const AttentionGradients& gradients, ThreadPool* pool);

}  // namespace nibble::quantize
