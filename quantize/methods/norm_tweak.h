// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Norm tweaking (arXiv:2309.02784): after a block's linear layers are rounded, Adam moves its norms
// so that the output of the rounded block has the moments of the float block's output on the same
// input, channel by channel over the tokens of a sequence:
//   L = mean over channels of |mu_f - mu_q| + |sigma_f^2 - sigma_q^2|
// One pass over the sequences, a step for each; learning rate lr0 * (1 + scale * layer / layers).
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/float_block.h"

namespace nibble::quantize {

struct NormTweakOptions {
  double learning_rate = 1e-5;  // lr0, of the first layer; 0..1
  // "scale": layer i of L learns 1 + scale * i / L times as fast, the last almost 1 + scale. 0..100
  double layer_growth = 1.0;
  int64_t num_layers = 1;  // of the model; layer_idx counts to it
};

// Residual streams that enter the block, of the sequences one after another.
struct BlockInputs {
  const float* x = nullptr;               // [sum of lengths, hidden]
  std::vector<int64_t> sequence_lengths;  // each 1..positions of the RoPE table
};

struct NormTweakResult {
  double loss_before = 0.0;  // mean over the sequences that judge
  double loss_after = 0.0;   // after the pass, kept or not
  bool kept = false;         // the loss fell: the norms changed
};

// The loss of one sequence's outputs [num_tokens, hidden], and its gradient by `quantized` when
// `gradient` is not null (resized to fit).
double MomentLoss(const std::vector<float>& reference, const std::vector<float>& quantized,
                  int64_t hidden, std::vector<float>* gradient);

// Tweaks the norms of `quantized` (a block of dequantized weights, equalized or not, created with
// Gradient::kNorms) towards the outputs of `reference`. From eight sequences on every eighth is not
// learned from and judges; with fewer, all learn and judge. Unless the loss falls, the norms stay
// as they were. INVALID_ARGUMENT for options or inputs out of range. Deterministic.
//
// A step of Adam is about one learning rate: at 1e-5 and some hundred steps norms move by parts in
// a thousand, which bfloat16 (steps of 0.4 to 0.8 %) cannot hold. Store the result in float32.
absl::StatusOr<NormTweakResult> TweakNorms(const FloatBlock& reference, const BlockInputs& inputs,
                                           int64_t layer_idx, const NormTweakOptions& options,
                                           FloatBlock* quantized, ThreadPool* pool);

}  // namespace nibble::quantize
