// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/logprobs.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "engine/sampling/top_tokens.h"
#include "kernels/sampling/softmax_weights.h"

namespace nibble::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// log sum exp(logits - max_logit), max_logit finite.
double LogSumExp(std::span<const float> logits, float max_logit, Isa isa) {
  std::vector<double> sums((logits.size() + kernels::kWeightChunk - 1) / kernels::kWeightChunk);
  kernels::SumWeights({.logits = logits.data(),
                       .count = static_cast<int64_t>(logits.size()),
                       .max_logit = max_logit,
                       .min_exponent = -kInfinity},
                      sums.data(), isa);
  return std::log(std::accumulate(sums.begin(), sums.end(), 0.0));
}

class LogSoftmax {
 public:
  LogSoftmax(std::span<const float> logits, Isa isa) : max_logit_(FindBest(logits).logit) {
    if (max_logit_ == kInfinity) {
      double num_infinite = 0.0;
      for (const float logit : logits) num_infinite += logit == kInfinity ? 1.0 : 0.0;
      log_sum_ = std::log(num_infinite);
    } else if (max_logit_ > -kInfinity) {
      log_sum_ = LogSumExp(logits, max_logit_, isa);
    }
  }

  float operator()(float logit) const {
    if (!(logit > -kInfinity)) return -kInfinity;
    if (max_logit_ == kInfinity) {
      return logit == kInfinity ? static_cast<float>(-log_sum_) : -kInfinity;
    }
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max_logit_) -
                              log_sum_);
  }

 private:
  float max_logit_;
  double log_sum_ = 0.0;
};

int32_t Rank(std::span<const float> logits, int32_t token_id) {
  const float own = logits[static_cast<size_t>(token_id)];
  int32_t rank = 1;
  for (const float logit : logits) rank += logit > own ? 1 : 0;
  for (const float logit : logits.first(static_cast<size_t>(token_id)))
    rank += logit == own ? 1 : 0;
  return rank;
}

}  // namespace

TokenLogprobs ComputeLogprobs(std::span<const float> logits, int32_t token_id, int32_t num_top,
                              Isa isa) {
  const LogSoftmax log_softmax(logits, isa);
  TokenLogprobs result;
  result.sampled = {.token_id = token_id,
                    .logprob = log_softmax(logits[static_cast<size_t>(token_id)]),
                    .rank = Rank(logits, token_id)};
  if (num_top <= 0) return result;
  int32_t rank = 0;
  for (const Candidate& candidate : FindTop(logits, static_cast<size_t>(num_top))) {
    result.top.push_back(
        {.token_id = candidate.token_id, .logprob = log_softmax(candidate.logit), .rank = ++rank});
  }
  return result;
}

}  // namespace nibble::engine
