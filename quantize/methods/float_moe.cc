// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/moe/route.h"
#include "quantize/methods/float_feed_forward.h"

namespace nibble::quantize {
namespace {

float Dot(const float* a, const float* b, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<float>(sum);
}

// Row i of the result is row places[i] / places_per_row of x.
std::vector<float> Gather(const std::vector<float>& x, const std::vector<int64_t>& places,
                          int64_t places_per_row, int64_t width) {
  std::vector<float> rows;
  rows.reserve(places.size() * static_cast<size_t>(width));
  for (const int64_t place : places) {
    const auto row = x.begin() + place / places_per_row * width;
    rows.insert(rows.end(), row, row + width);
  }
  return rows;
}

absl::Status CheckSizes(const MoeWeights& weights) {
  const int64_t hidden = weights.router.k;
  const size_t num_experts = static_cast<size_t>(weights.num_routed()) + weights.has_shared();
  const auto fits = [](const Matrix& matrix, int64_t n, int64_t k) {
    return matrix.n == n && matrix.k == k &&
           static_cast<int64_t>(matrix.weight.size()) == matrix.n * matrix.k;
  };
  bool fit =
      weights.experts.size() == num_experts && fits(weights.router, weights.num_routed(), hidden) &&
      (!weights.has_shared() || fits(weights.shared_gate, 1, hidden)) &&
      weights.num_experts_per_tok >= 1 && weights.num_experts_per_tok <= weights.num_routed() &&
      weights.num_routed() <= kernels::kMaxExperts;
  for (const FeedForward& expert : weights.experts) {
    const int64_t ffn = expert.gate.n;
    fit = fit && ffn > 0 && fits(expert.gate, ffn, hidden) && fits(expert.up, ffn, hidden) &&
          fits(expert.down, hidden, ffn);
  }
  if (fit) return absl::OkStatus();
  return InvalidArgument(
      "{} experts, {} of them a token's, a router of [{}, {}]: sizes that do not fit together",
      weights.experts.size(), weights.num_experts_per_tok, weights.router.n, hidden);
}

}  // namespace

absl::StatusOr<FloatMoe> FloatMoe::Create(const MoeWeights& weights, const LinearSettings& settings,
                                          ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckSizes(weights));
  FloatMoe moe;
  moe.hidden_ = weights.router.k;
  moe.experts_per_tok_ = weights.num_experts_per_tok;
  moe.norm_topk_prob_ = weights.norm_topk_prob;
  moe.num_routed_ = weights.num_routed();
  moe.isa_ = settings.isa;
  const LinearSettings in_float = {.gradient = settings.gradient, .isa = settings.isa};
  NIBBLE_ASSIGN_OR_RETURN(moe.router_, FloatLinear::Create(weights.router, in_float, pool));
  if (weights.has_shared()) moe.shared_gate_ = weights.shared_gate.weight;
  for (const FeedForward& expert : weights.experts) {
    NIBBLE_ASSIGN_OR_RETURN(FloatFeedForward network,
                            FloatFeedForward::Create(expert, settings, pool));
    moe.experts_.push_back(std::move(network));
  }
  return moe;
}

std::vector<float> FloatMoe::Forward(const std::vector<float>& x, int64_t num_tokens,
                                     MoeTrace* trace, ThreadPool* pool) const {
  trace->logits = router_.Forward(x, num_tokens, pool);
  trace->expert_ids.resize(static_cast<size_t>(num_tokens * experts_per_tok_));
  trace->weights.resize(trace->expert_ids.size());
  kernels::Route({.num_tokens = num_tokens,
                  .num_experts = num_routed_,
                  .num_experts_per_tok = experts_per_tok_,
                  .renormalize = norm_topk_prob_,
                  .logits = trace->logits.data(),
                  .expert_ids = trace->expert_ids.data(),
                  .weights = trace->weights.data()},
                 isa_, pool);
  trace->experts.assign(experts_.size(), {});
  for (size_t i = 0; i < trace->expert_ids.size(); ++i) {
    trace->experts[static_cast<size_t>(trace->expert_ids[i])].places.push_back(
        static_cast<int64_t>(i));
  }
  std::vector<float> y(x.size());
  for (size_t e = 0; e < static_cast<size_t>(num_routed_); ++e) {
    ExpertTrace& expert = trace->experts[e];
    if (expert.places.empty()) continue;
    expert.y =
        experts_[e].Forward(Gather(x, expert.places, experts_per_tok_, hidden_),
                            static_cast<int64_t>(expert.places.size()), &expert.network, pool);
    for (size_t i = 0; i < expert.places.size(); ++i) {
      const float weight = trace->weights[static_cast<size_t>(expert.places[i])];
      const float* const row = expert.y.data() + static_cast<int64_t>(i) * hidden_;
      float* const out = y.data() + expert.places[i] / experts_per_tok_ * hidden_;
      for (int64_t c = 0; c < hidden_; ++c) out[c] += weight * row[c];
    }
  }
  if (!shared_gate_.empty()) ForwardShared(x, num_tokens, trace, &y, pool);
  return y;
}

void FloatMoe::ForwardShared(const std::vector<float>& x, int64_t num_tokens, MoeTrace* trace,
                             std::vector<float>* y, ThreadPool* pool) const {
  ExpertTrace& shared = trace->experts.back();
  shared.y = experts_.back().Forward(x, num_tokens, &shared.network, pool);
  trace->shared_gate.resize(static_cast<size_t>(num_tokens));
  for (int64_t token = 0; token < num_tokens; ++token) {
    const float gate = Sigmoid(Dot(x.data() + token * hidden_, shared_gate_.data(), hidden_));
    trace->shared_gate[static_cast<size_t>(token)] = gate;
    for (int64_t i = token * hidden_; i < (token + 1) * hidden_; ++i) {
      (*y)[static_cast<size_t>(i)] += gate * shared.y[static_cast<size_t>(i)];
    }
  }
}

std::vector<float> FloatMoe::Backward(const MoeTrace& trace, const std::vector<float>& dy,
                                      int64_t num_tokens, ThreadPool* pool) const {
  std::vector<float> dx(dy.size());
  std::vector<float> d_weights(trace.weights.size());
  for (size_t e = 0; e < static_cast<size_t>(num_routed_); ++e) {
    const ExpertTrace& expert = trace.experts[e];
    if (expert.places.empty()) continue;
    std::vector<float> d_rows = Gather(dy, expert.places, experts_per_tok_, hidden_);
    for (size_t i = 0; i < expert.places.size(); ++i) {
      const auto place = static_cast<size_t>(expert.places[i]);
      float* const row = d_rows.data() + static_cast<int64_t>(i) * hidden_;
      d_weights[place] = Dot(row, expert.y.data() + static_cast<int64_t>(i) * hidden_, hidden_);
      for (int64_t c = 0; c < hidden_; ++c) row[c] *= trace.weights[place];
    }
    const std::vector<float> d_input = experts_[e].Backward(
        expert.network, d_rows, static_cast<int64_t>(expert.places.size()), pool);
    for (size_t i = 0; i < expert.places.size(); ++i) {
      const float* const row = d_input.data() + static_cast<int64_t>(i) * hidden_;
      float* const out = dx.data() + expert.places[i] / experts_per_tok_ * hidden_;
      for (int64_t c = 0; c < hidden_; ++c) out[c] += row[c];
    }
  }
  AddTo(router_.Backward(BackwardRouting(trace, d_weights, num_tokens), num_tokens, pool), &dx);
  if (!shared_gate_.empty()) BackwardShared(trace, dy, num_tokens, &dx, pool);
  return dx;
}

// With w a softmax over all experts, or over the chosen ones where they are divided by their sum:
//   d_logit_i = w_i (d_w_i - sum over the chosen j of w_j d_w_j),  d_w_i = 0 where not chosen
std::vector<float> FloatMoe::BackwardRouting(const MoeTrace& trace,
                                             const std::vector<float>& d_weights,
                                             int64_t num_tokens) const {
  std::vector<float> d_logits(trace.logits.size());
  for (int64_t token = 0; token < num_tokens; ++token) {
    const auto first = static_cast<size_t>(token * experts_per_tok_);
    const float* const logits = trace.logits.data() + token * num_routed_;
    float* const d_row = d_logits.data() + token * num_routed_;
    const auto k = static_cast<size_t>(experts_per_tok_);
    float sum = 0.0F;
    for (size_t j = first; j < first + k; ++j) sum += trace.weights[j] * d_weights[j];
    if (!norm_topk_prob_) {
      // The probability of any expert from that of the first chosen one.
      const auto chosen = static_cast<size_t>(trace.expert_ids[first]);
      for (int64_t i = 0; i < num_routed_; ++i) {
        d_row[i] = -sum * trace.weights[first] * std::exp(logits[i] - logits[chosen]);
      }
    }
    for (size_t j = first; j < first + k; ++j) {
      float& d_logit = d_row[trace.expert_ids[j]];
      d_logit = trace.weights[j] * (d_weights[j] - sum);
    }
  }
  return d_logits;
}

void FloatMoe::BackwardShared(const MoeTrace& trace, const std::vector<float>& dy,
                              int64_t num_tokens, std::vector<float>* dx, ThreadPool* pool) const {
  const ExpertTrace& shared = trace.experts.back();
  std::vector<float> d_shared = dy;
  for (int64_t token = 0; token < num_tokens; ++token) {
    const float gate = trace.shared_gate[static_cast<size_t>(token)];
    float* const row = d_shared.data() + token * hidden_;
    const float d_gate =
        gate * (1.0F - gate) * Dot(row, shared.y.data() + token * hidden_, hidden_);
    for (int64_t i = 0; i < hidden_; ++i) {
      row[i] *= gate;
      (*dx)[static_cast<size_t>(token * hidden_ + i)] +=
          d_gate * shared_gate_[static_cast<size_t>(i)];
    }
  }
  AddTo(experts_.back().Backward(shared.network, d_shared, num_tokens, pool), dx);
}

}  // namespace nibble::quantize
