// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The mixture of experts of a layer, with the kernels that serve models.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/feed_forward_runner.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

// Which experts tokens go to. The router reads floats, whatever the experts read.
class Router {
 public:
  static absl::StatusOr<Router> Create(const MoeWeights& weights, Isa isa, ThreadPool* pool);

  int64_t num_experts() const { return router_.n(); }
  int64_t experts_per_tok() const { return experts_per_tok_; }
  // Of input [num_tokens, hidden]: ids and weights [num_tokens, experts_per_tok].
  void Route(const float* input, int64_t num_tokens, int32_t* expert_ids, float* weights,
             ThreadPool* pool);

 private:
  DenseLayer router_;
  int64_t experts_per_tok_ = 0;
  bool renormalize_ = true;
  Isa isa_ = Isa::kRef;
  AlignedBuffer<float> logits_;  // [num_tokens, num_experts]
};

class MoeRunner {
 public:
  // Without its experts, which AddExpert gives one after another as floats, in the order of
  // MoeWeights::experts: all of them need not be in memory twice.
  static absl::StatusOr<MoeRunner> Create(const MoeWeights& weights, int activation_bits, Isa isa,
                                          ThreadPool* pool);
  absl::Status AddExpert(const FeedForward& weights, ThreadPool* pool);

  // out [num_tokens, hidden] from input [num_tokens, hidden]. A token's output does not depend on
  // the others, nor on the number of threads. REQUIRES: all experts were added.
  void Run(const float* input, int64_t num_tokens, float* out, ThreadPool* pool);

 private:
  void Reserve(int64_t num_tokens);
  // out = sigmoid(shared_gate(x)) * shared(x)
  void RunShared(const float* input, int64_t num_tokens, float* out, ThreadPool* pool);

  int64_t hidden_ = 0;
  int activation_bits_ = 16;
  Isa isa_ = Isa::kRef;
  Router router_;
  std::vector<float> shared_gate_;          // [hidden] or empty
  std::vector<FeedForwardRunner> experts_;  // the shared one last

  int64_t token_capacity_ = 0;
  std::vector<int32_t> expert_ids_;    // [num_tokens, k]
  std::vector<float> weights_;         // [num_tokens, k]
  std::vector<int32_t> offsets_;       // [num_experts + 1]: rows of an expert
  std::vector<int32_t> token_of_row_;  // [num_tokens * k]
  std::vector<int32_t> row_of_;        // [num_tokens, k]
  AlignedBuffer<float> input_;         // [num_tokens, hidden]: what one expert reads
  AlignedBuffer<float> rows_;          // [num_tokens * k, hidden]: what they give
  FeedForwardWorkspace workspace_;
};

}  // namespace nibble::quantize
