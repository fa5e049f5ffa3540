// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The feed-forward half of a layer in float, forward and backward to its input: one network, or a
// mixture of experts (calibration_data.h has the equations).
#pragma once

#include <cstdint>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"
#include "quantize/methods/float_linear.h"

namespace nibble::quantize {

struct FeedForwardTrace {
  std::vector<float> gate, up;    // [num_rows, ffn]
  std::vector<float> down_input;  // [num_rows, ffn]
};

class FloatFeedForward {
 public:
  FloatFeedForward() = default;
  static absl::StatusOr<FloatFeedForward> Create(const FeedForward& weights,
                                                 const LinearSettings& settings, ThreadPool* pool);

  // y [num_rows, hidden] of x [num_rows, hidden].
  std::vector<float> Forward(const std::vector<float>& x, int64_t num_rows, FeedForwardTrace* trace,
                             ThreadPool* pool) const;
  // The gradient of x from that of y.
  std::vector<float> Backward(const FeedForwardTrace& trace, const std::vector<float>& dy,
                              int64_t num_rows, ThreadPool* pool) const;

 private:
  FloatLinear gate_, up_, down_;
};

// What one expert did.
struct ExpertTrace {
  std::vector<int64_t> places;  // token * k + j: the rows, which are the j-th choice of a token
  std::vector<float> y;         // [rows, hidden], before their weights
  FeedForwardTrace network;
};

struct MoeTrace {
  std::vector<float> logits;         // [num_tokens, experts]
  std::vector<int32_t> expert_ids;   // [num_tokens, k]
  std::vector<float> weights;        // [num_tokens, k]
  std::vector<ExpertTrace> experts;  // the shared one last; its places are tokens
  std::vector<float> shared_gate;    // [num_tokens] after the sigmoid
};

// The choice of experts is taken as given by the gradient, their weights are not.
class FloatMoe {
 public:
  FloatMoe() = default;
  static absl::StatusOr<FloatMoe> Create(const MoeWeights& weights, const LinearSettings& settings,
                                         ThreadPool* pool);

  std::vector<float> Forward(const std::vector<float>& x, int64_t num_tokens, MoeTrace* trace,
                             ThreadPool* pool) const;
  std::vector<float> Backward(const MoeTrace& trace, const std::vector<float>& dy,
                              int64_t num_tokens, ThreadPool* pool) const;

 private:
  void ForwardShared(const std::vector<float>& x, int64_t num_tokens, MoeTrace* trace,
                     std::vector<float>* y, ThreadPool* pool) const;
  void BackwardShared(const MoeTrace& trace, const std::vector<float>& dy, int64_t num_tokens,
                      std::vector<float>* dx, ThreadPool* pool) const;
  // Gradient of the logits from that of the weights [num_tokens, k].
  std::vector<float> BackwardRouting(const MoeTrace& trace, const std::vector<float>& d_weights,
                                     int64_t num_tokens) const;

  int64_t hidden_ = 0;
  int64_t experts_per_tok_ = 0;
  bool norm_topk_prob_ = true;
  Isa isa_ = Isa::kRef;
  FloatLinear router_;  // [experts, hidden]; reads floats
  int64_t num_routed_ = 0;
  std::vector<float> shared_gate_;         // [hidden] or empty
  std::vector<FloatFeedForward> experts_;  // the shared one last
};

}  // namespace nibble::quantize
