// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/logprobs.h"

#include <array>
#include <cmath>
#include <limits>

#include "engine/sampling/exp.h"
#include "engine/sampling/top_tokens.h"

namespace nibble::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 8;

// log sum exp(logits - max_logit), max_logit finite.
double LogSumExp(std::span<const float> logits, float max_logit) {
  std::array<double, kLanes> lanes{};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += static_cast<double>(ExpNonPositive(logits[i + lane] - max_logit));
    }
  }
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  for (; i < logits.size(); ++i) sum += static_cast<double>(ExpNonPositive(logits[i] - max_logit));
  return std::log(sum);
}

class LogSoftmax {
 public:
  explicit LogSoftmax(std::span<const float> logits) : max_logit_(FindBest(logits).logit) {
    if (max_logit_ == kInfinity) {
      double num_infinite = 0.0;
      for (const float logit : logits) num_infinite += logit == kInfinity ? 1.0 : 0.0;
      log_sum_ = std::log(num_infinite);
    } else if (max_logit_ > -kInfinity) {
      log_sum_ = LogSumExp(logits, max_logit_);
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

TokenLogprobs ComputeLogprobs(std::span<const float> logits, int32_t token_id, int32_t num_top) {
  const LogSoftmax log_softmax(logits);
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
