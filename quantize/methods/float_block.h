// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One decoder layer in float over one sequence, keeping what the inputs of its linear layers were,
// and the gradient of a loss with respect to its norms.
//
//   NIBBLE_ASSIGN_OR_RETURN(FloatBlock block, FloatBlock::Create(weights, settings, {}, &pool));
//   BlockTrace trace;
//   NIBBLE_RETURN_IF_ERROR(block.Forward(x, num_tokens, &trace, &pool));   // trace.y
//   BlockNorms gradient = block.Backward(trace, dy, &pool);  // dy [num_tokens, hidden] = dLoss/dy
//
// Everything is deterministic: independent of the number of threads.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/rope/rope.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/equalization.h"
#include "quantize/methods/float_feed_forward.h"
#include "quantize/methods/float_linear.h"

namespace nibble::quantize {

struct BlockSettings {
  AttentionShape attention;
  float rms_norm_eps = 1e-5F;
  int64_t sliding_window = 0;  // positions a token attends to, its own included; 0: all before it
  // 8: the input of every linear layer is rounded to int8 per token, as the engine does; the
  // gradient passes as if it were not (straight-through). 16: not rounded.
  int activation_bits = 16;
  const kernels::RopeTable* rope = nullptr;  // outlives the block; bounds num_tokens
  Isa isa = Isa::kRef;
};

// The parameters that norm tweaking changes; also their gradients.
struct BlockNorms {
  std::vector<float> input;           // [hidden]
  std::vector<float> post_attention;  // [hidden]
  std::vector<float> q;               // [head_dim] or empty
  std::vector<float> k;               // [head_dim] or empty
};

// What Forward computed, row-major with one row per token. Site inputs are those before rounding to
// int8: what calibration statistics are made of.
struct BlockTrace {
  int64_t num_tokens = 0;
  std::vector<float> x;              // [hidden] input of the block
  std::vector<float> qkv_input;      // [hidden]
  std::vector<float> o_input;        // [num_heads * head_dim]
  std::vector<float> gate_up_input;  // [hidden]
  std::vector<float> y;              // [hidden] output of the block

  // For the gradient.
  std::vector<float> middle;            // [hidden] residual stream after attention
  std::vector<float> q, k, v;           // [heads * head_dim] as attention reads them
  std::vector<float> q_plain, k_plain;  // before q_norm and k_norm; empty without these
  FeedForwardTrace network;             // of a block without experts; the input of down, too
  MoeTrace moe;                         // of one with experts
  const std::vector<float>& site_input(Site site) const;
};

class FloatBlock {
 public:
  // Keeps packed copies of the weights. INVALID_ARGUMENT for sizes that do not fit.
  static absl::StatusOr<FloatBlock> Create(const BlockWeights& weights,
                                           const BlockSettings& settings, Gradient gradient,
                                           ThreadPool* pool);

  int64_t hidden() const { return hidden_; }
  // May be changed between calls, not resized.
  BlockNorms norms;

  // x [num_tokens, hidden]. INVALID_ARGUMENT for more tokens than the RoPE table has positions.
  absl::Status Forward(const float* x, int64_t num_tokens, BlockTrace* trace,
                       ThreadPool* pool) const;
  // Gradient of the norms from `dy` [num_tokens, hidden], the gradient of trace.y. `trace` is of
  // this block with these norms. REQUIRES: created with Gradient::kNorms.
  BlockNorms Backward(const BlockTrace& trace, const float* dy, ThreadPool* pool) const;

 private:
  FloatBlock() = default;
  void Rotate(std::vector<float>* heads, int64_t num_heads, int64_t num_tokens, float direction,
              ThreadPool* pool) const;
  void Attention(BlockTrace* trace, ThreadPool* pool) const;
  // Gradient of the input of q/k/v from that of o's output; adds to the gradients of q_norm,
  // k_norm.
  std::vector<float> AttentionBackward(const BlockTrace& trace, const std::vector<float>& d_middle,
                                       BlockNorms* gradient, ThreadPool* pool) const;

  BlockSettings settings_;
  int64_t hidden_ = 0;
  FloatLinear q_, k_, v_, o_;
  FloatFeedForward network_;     // without experts
  std::optional<FloatMoe> moe_;  // with experts
};

}  // namespace nibble::quantize
