// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/moe_runner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "kernels/moe/combine.h"
#include "kernels/moe/permute.h"
#include "kernels/moe/route.h"

namespace nibble::quantize {

absl::StatusOr<Router> Router::Create(const MoeWeights& weights, Isa isa, ThreadPool* pool) {
  Router router;
  NIBBLE_ASSIGN_OR_RETURN(router.router_, DenseLayer::Create(weights.router, isa, pool));
  router.experts_per_tok_ = weights.num_experts_per_tok;
  router.renormalize_ = weights.norm_topk_prob;
  router.isa_ = isa;
  return router;
}

void Router::Route(const float* input, int64_t num_tokens, int32_t* expert_ids, float* weights,
                   ThreadPool* pool) {
  const auto size = static_cast<size_t>(num_tokens * num_experts());
  if (logits_.size() < size) logits_ = AlignedBuffer<float>(size);
  router_.Multiply(input, num_tokens, logits_.data(), num_experts(), pool);
  kernels::Route({.num_tokens = num_tokens,
                  .num_experts = num_experts(),
                  .num_experts_per_tok = experts_per_tok_,
                  .renormalize = renormalize_,
                  .logits = logits_.data(),
                  .expert_ids = expert_ids,
                  .weights = weights},
                 isa_, pool);
}

absl::StatusOr<MoeRunner> MoeRunner::Create(const MoeWeights& weights, int activation_bits, Isa isa,
                                            ThreadPool* pool) {
  MoeRunner runner;
  runner.hidden_ = weights.router.k;
  runner.activation_bits_ = activation_bits;
  runner.isa_ = isa;
  NIBBLE_ASSIGN_OR_RETURN(runner.router_, Router::Create(weights, isa, pool));
  if (weights.has_shared()) runner.shared_gate_ = weights.shared_gate.weight;
  return runner;
}

absl::Status MoeRunner::AddExpert(const FeedForward& weights, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(FeedForwardRunner expert,
                          FeedForwardRunner::Create(weights, activation_bits_, isa_, pool));
  experts_.push_back(std::move(expert));
  return absl::OkStatus();
}

void MoeRunner::Reserve(int64_t num_tokens) {
  if (num_tokens <= token_capacity_) return;
  const auto num_rows = static_cast<size_t>(num_tokens * router_.experts_per_tok());
  expert_ids_.resize(num_rows);
  weights_.resize(num_rows);
  offsets_.resize(static_cast<size_t>(router_.num_experts()) + 1);
  token_of_row_.resize(num_rows);
  row_of_.resize(num_rows);
  input_ = AlignedBuffer<float>(static_cast<size_t>(num_tokens * hidden_));
  rows_ = AlignedBuffer<float>(num_rows * static_cast<size_t>(hidden_));
  token_capacity_ = num_tokens;
}

void MoeRunner::Run(const float* input, int64_t num_tokens, float* out, ThreadPool* pool) {
  const int64_t num_experts = router_.num_experts();
  NIBBLE_CHECK_EQ(experts_.size(), static_cast<size_t>(num_experts) + !shared_gate_.empty());
  Reserve(num_tokens);
  router_.Route(input, num_tokens, expert_ids_.data(), weights_.data(), pool);
  kernels::Permute({.num_tokens = num_tokens,
                    .num_experts_per_tok = router_.experts_per_tok(),
                    .slot_ids = expert_ids_.data(),
                    .first_slot = 0,
                    .num_slots = static_cast<int32_t>(num_experts),
                    .offsets = offsets_.data(),
                    .token_of_row = token_of_row_.data(),
                    .row_of = row_of_.data()});
  for (size_t e = 0; e < static_cast<size_t>(num_experts); ++e) {
    const int64_t first = offsets_[e];
    const int64_t num_rows = offsets_[e + 1] - first;
    if (num_rows == 0) continue;
    for (int64_t i = 0; i < num_rows; ++i) {
      const float* const row = input + token_of_row_[static_cast<size_t>(first + i)] * hidden_;
      std::copy(row, row + hidden_, input_.data() + i * hidden_);
    }
    // Without an observer nothing can fail.
    NIBBLE_CHECK(experts_[e]
                     .Run(input_.data(), num_rows, nullptr, rows_.data() + first * hidden_,
                          &workspace_, pool)
                     .ok());
  }
  if (!shared_gate_.empty()) RunShared(input, num_tokens, out, pool);
  kernels::Combine({.num_tokens = num_tokens,
                    .num_experts_per_tok = router_.experts_per_tok(),
                    .hidden = hidden_,
                    .weights = weights_.data(),
                    .row_of = row_of_.data(),
                    .y = rows_.data(),
                    .y_stride = hidden_,
                    .accumulate = !shared_gate_.empty(),
                    .out = out,
                    .out_stride = hidden_},
                   isa_, pool);
}

void MoeRunner::RunShared(const float* input, int64_t num_tokens, float* out, ThreadPool* pool) {
  std::copy(input, input + num_tokens * hidden_, input_.data());
  NIBBLE_CHECK(
      experts_.back().Run(input_.data(), num_tokens, nullptr, out, &workspace_, pool).ok());
  pool->ParallelFor(num_tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      double logit = 0.0;
      for (int64_t i = 0; i < hidden_; ++i) {
        logit += static_cast<double>(input[token * hidden_ + i]) *
                 static_cast<double>(shared_gate_[static_cast<size_t>(i)]);
      }
      const auto gate = static_cast<float>(1.0 / (1.0 + std::exp(-logit)));
      for (int64_t i = 0; i < hidden_; ++i) out[token * hidden_ + i] *= gate;
    }
  });
}

}  // namespace nibble::quantize
