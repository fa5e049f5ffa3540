// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The values that quantization methods work on: the weights of one decoder layer, what calibration
// saw at the inputs of its linear layers, and what a scheme allows the weights to become. Plain
// data; methods are functions of it, independent of checkpoints and files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/quant/int4_weight.h"
#include "kernels/quant/int8_weight.h"

namespace nibble::quantize {

struct Matrix {
  std::string name;           // "model.layers.0.self_attn.q_proj"
  int64_t n = 0;              // output channels
  int64_t k = 0;              // input channels
  std::vector<float> weight;  // [n, k]
  std::vector<float> bias;    // [n] or empty
};

// down(silu(gate(b)) * up(b))
struct FeedForward {
  Matrix gate, up, down;
};

// A mixture of experts. Each token goes to k of them:
//   p = softmax(router(b)) over the experts
//   w = the k largest of p, with norm_topk_prob divided by their sum
//   moe(b) = sum over the k of w_e * expert_e(b), and sigmoid(shared_gate(b)) * shared(b)
struct MoeWeights {
  int64_t num_experts_per_tok = 0;  // k
  bool norm_topk_prob = true;
  Matrix router;                     // [experts, hidden]; never rounded
  Matrix shared_gate;                // [1, hidden], never rounded; [0, hidden]: no shared expert
  std::vector<FeedForward> experts;  // the shared one last

  int64_t num_routed() const { return router.n; }
  bool has_shared() const { return shared_gate.n > 0; }
};

// One decoder layer in float. Output of the block, x [hidden] the residual stream:
//   a = RmsNorm(x, input_norm);  x += o(attention(rope(q_norm(q(a))), rope(k_norm(k(a))), v(a)))
//   b = RmsNorm(x, post_attention_norm);  x += down(silu(gate(b)) * up(b))  or  x += moe(b)
// The dense network is the block's own gate, up and down. A block with experts has none, but while
// it is quantized each expert takes its place in turn.
struct BlockWeights : FeedForward {
  int64_t layer_idx = 0;
  std::vector<float> input_norm;           // [hidden]
  std::vector<float> post_attention_norm;  // [hidden]
  std::vector<float> q_norm;               // [head_dim] or empty
  std::vector<float> k_norm;               // [head_dim] or empty
  Matrix q, k, v, o;
  std::optional<MoeWeights> moe;
};

// What the linear layers that read one activation saw over the calibration tokens. A block has four
// such sites: the inputs of q/k/v, of o, of gate/up, and of down.
struct InputStatistics {
  int64_t k = 0;
  int64_t num_tokens = 0;
  std::vector<double> hessian;  // [k, k] sum over tokens of x x^T / num_tokens; symmetric
  std::vector<float> abs_max;   // [k] over tokens
  std::vector<float> abs_mean;  // [k]
  int64_t num_samples = 0;      // evenly spaced tokens kept whole
  std::vector<float> samples;   // [num_samples, k]
};

struct BlockStatistics {
  InputStatistics qkv, o, gate_up, down;
};

// What a scheme allows the weights to be.
struct WeightScheme {
  int bits = 4;               // 4: Int4Weight, symmetric. 8: Int8Weight, one scale per channel
  int64_t group_size = 128;   // bits == 4: divides k; k for one scale per channel (FastGEMM)
  bool folded_scales = true;  // bits == 4: scales are S * c[n], S in 1..16 or -15..-1 (rtn.h)
  int activation_bits = 8;    // 8: int8 per token; 16: not quantized
};

using QuantizedWeight = std::variant<kernels::Int4Weight, kernels::Int8Weight>;

// [n, k] floats of what was quantized.
std::vector<float> Dequantize(const QuantizedWeight& weight);

}  // namespace nibble::quantize
