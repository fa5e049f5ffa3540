// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/draw.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/sampling/softmax_weights.h"

namespace nibble::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kChunk = kernels::kWeightChunk;

// A row of logits and the weights that the request gives them, computed where they are needed.
class WeightedRow {
 public:
  WeightedRow(std::span<const float> logits, const kernels::SoftmaxWeights& weights, Isa isa)
      : logits_(logits), weights_(weights), isa_(isa) {}

  std::span<const float> logits() const { return logits_; }
  float max_logit() const { return weights_.max_logit; }
  float temperature() const { return weights_.temperature; }

  // Sums over chunks of kChunk tokens.
  std::vector<double> SumChunks() const {
    std::vector<double> sums((logits_.size() + kChunk - 1) / kChunk);
    kernels::SumWeights(Of(logits_), sums.data(), isa_);
    return sums;
  }
  void Weigh(std::span<const float> logits, float* weights) const {
    kernels::WeighLogits(Of(logits), weights, isa_);
  }

 private:
  kernels::SoftmaxWeights Of(std::span<const float> logits) const {
    kernels::SoftmaxWeights args = weights_;
    args.logits = logits.data();
    args.count = static_cast<int64_t>(logits.size());
    return args;
  }

  std::span<const float> logits_;
  kernels::SoftmaxWeights weights_;
  Isa isa_;
};

// A token that may be drawn.
struct Choice {
  Candidate candidate;
  float weight = 0.0F;
};

bool RanksBefore(const Choice& a, const Choice& b) { return RanksBefore(a.candidate, b.candidate); }

double Total(const std::vector<double>& sums) {
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

// Inverse of the cumulative distribution in id order: the chunk first, then the token in it.
int32_t DrawFromAll(const WeightedRow& row, const std::vector<double>& sums, float uniform) {
  const double target = static_cast<double>(uniform) * Total(sums);
  double cumulative = 0.0;
  size_t chunk = 0;
  size_t last_chunk = 0;  // the last one that weighs anything
  for (; chunk < sums.size(); ++chunk) {
    if (sums[chunk] > 0.0) last_chunk = chunk;
    if (cumulative + sums[chunk] > target) break;
    cumulative += sums[chunk];
  }
  if (chunk == sums.size()) chunk = last_chunk;  // by rounding only
  const size_t begin = chunk * kChunk;
  const auto logits = row.logits().subspan(begin, std::min(kChunk, row.logits().size() - begin));
  std::array<float, kChunk> weights;
  row.Weigh(logits, weights.data());
  size_t chosen = begin;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (weights[i] <= 0.0F) continue;
    chosen = begin + i;
    cumulative += static_cast<double>(weights[i]);
    if (cumulative > target) break;
  }
  return static_cast<int32_t>(chosen);
}

// The last of the most likely choices that together hold at least `mass` (the very last one when
// all do not). By halves, as selecting an element by its place is: O(choices), where sorting a flat
// row of 128 k tokens takes tens of milliseconds.
Choice FindCutoff(std::vector<Choice> choices, double mass) {
  auto begin = choices.begin();
  auto end = choices.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end,
                     [](const Choice& a, const Choice& b) { return RanksBefore(a, b); });
    double sum = 0.0;
    for (auto c = begin; c != middle; ++c) sum += static_cast<double>(c->weight);
    if (sum >= mass) {
      end = middle;
    } else {
      mass -= sum;
      begin = middle;
    }
  }
  return *begin;
}

// Draws from the most likely choices that hold `mass`, walked in the order they are given in.
int32_t DrawFromMass(const std::vector<Choice>& choices, double mass, float uniform) {
  const Choice last = FindCutoff(choices, mass);
  double kept = 0.0;
  for (const Choice& c : choices) {
    if (!RanksBefore(last, c)) kept += static_cast<double>(c.weight);
  }
  const double target = static_cast<double>(uniform) * kept;
  double cumulative = 0.0;
  int32_t chosen = choices.front().candidate.token_id;
  for (const Choice& c : choices) {
    if (c.weight <= 0.0F || RanksBefore(last, c)) continue;
    chosen = c.candidate.token_id;
    cumulative += static_cast<double>(c.weight);
    if (cumulative > target) break;
  }
  return chosen;
}

// Tokens of at least `bar` that weigh anything, by id, and what they weigh together.
double GatherFrom(const WeightedRow& row, float bar, std::vector<Choice>* choices) {
  choices->clear();
  double gathered = 0.0;
  std::array<float, kChunk> weights;
  for (size_t begin = 0; begin < row.logits().size(); begin += kChunk) {
    const auto logits = row.logits().subspan(begin, std::min(kChunk, row.logits().size() - begin));
    row.Weigh(logits, weights.data());
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!(logits[i] >= bar) || weights[i] <= 0.0F) continue;
      gathered += static_cast<double>(weights[i]);
      choices->push_back(
          {.candidate = {.logit = logits[i], .token_id = static_cast<int32_t>(begin + i)},
           .weight = weights[i]});
    }
  }
  return gathered;
}

// Tokens among which the most likely ones that hold `mass` are, by id. The bar sinks until enough
// is above it; most rows of a trained model are done at the first one, with few choices.
std::vector<Choice> GatherMass(const WeightedRow& row, double mass) {
  std::vector<Choice> choices;
  for (const float exponent : {-4.0F, -8.0F, -16.0F, -kInfinity}) {
    if (GatherFrom(row, row.max_logit() + exponent * row.temperature(), &choices) >= mass) break;
  }
  return choices;
}

// The top_k tokens. min_p removes the tail of the same order, so its weights of 0 may as well come
// after the selection.
int32_t DrawFromTop(const WeightedRow& row, const SamplingRow& params, float uniform) {
  std::vector<Choice> choices;
  double total = 0.0;
  for (const Candidate& candidate : FindTop(row.logits(), static_cast<size_t>(params.top_k))) {
    choices.push_back({.candidate = candidate});
    row.Weigh({&candidate.logit, 1}, &choices.back().weight);
    total += static_cast<double>(choices.back().weight);
  }
  const double mass = params.top_p < 1.0F ? static_cast<double>(params.top_p) * total
                                          : std::numeric_limits<double>::infinity();
  return DrawFromMass(choices, mass, uniform);
}

}  // namespace

int32_t DrawToken(std::span<const float> logits, const Candidate& best, const SamplingRow& params,
                  float uniform, Isa isa) {
  const WeightedRow row(logits,
                        {.max_logit = best.logit,
                         .temperature = params.temperature,
                         .min_exponent = params.min_p > 0.0F ? std::log(params.min_p) : -kInfinity},
                        isa);
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size()) {
    return DrawFromTop(row, params, uniform);
  }
  const std::vector<double> sums = row.SumChunks();
  if (params.top_p < 1.0F) {
    const double mass = static_cast<double>(params.top_p) * Total(sums);
    return DrawFromMass(GatherMass(row, mass), mass, uniform);
  }
  return DrawFromAll(row, sums, uniform);
}

}  // namespace nibble::engine
