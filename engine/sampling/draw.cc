// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/draw.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/sampling/exp.h"

namespace nibble::engine {
namespace {

// Weight of a logit relative to the most likely token's weight of 1.
struct WeightFunction {
  float max_logit;
  float temperature;
  float min_exponent;  // log(min_p): anything below weighs 0

  // Subtracting first keeps tiny temperatures finite: 0 for the best token, -inf for the others.
  float operator()(float logit) const {
    const float exponent = (logit - max_logit) / temperature;
    return exponent >= min_exponent ? ExpNonPositive(exponent) : 0.0F;
  }
};

constexpr size_t kChunk = 256;
constexpr size_t kLanes = 8;

// In a fixed order: kLanes interleaved sums, then the rest.
double SumWeights(std::span<const float> logits, const WeightFunction& weight) {
  std::array<double, kLanes> lanes{};
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += static_cast<double>(weight(logits[i + lane]));
    }
  }
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  for (; i < logits.size(); ++i) sum += static_cast<double>(weight(logits[i]));
  return sum;
}

std::vector<double> SumChunks(std::span<const float> logits, const WeightFunction& weight) {
  std::vector<double> sums;
  sums.reserve(logits.size() / kChunk + 1);
  for (size_t begin = 0; begin < logits.size(); begin += kChunk) {
    sums.push_back(
        SumWeights(logits.subspan(begin, std::min(kChunk, logits.size() - begin)), weight));
  }
  return sums;
}

double Total(const std::vector<double>& sums) {
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

// Inverse of the cumulative distribution in id order: the chunk first, then the token in it.
int32_t DrawFromAll(std::span<const float> logits, const WeightFunction& weight,
                    const std::vector<double>& sums, float uniform) {
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
  const size_t end = std::min(logits.size(), (chunk + 1) * kChunk);
  size_t chosen = chunk * kChunk;
  for (size_t i = chunk * kChunk; i < end; ++i) {
    const float w = weight(logits[i]);
    if (w <= 0.0F) continue;
    chosen = i;
    cumulative += static_cast<double>(w);
    if (cumulative > target) break;
  }
  return static_cast<int32_t>(chosen);
}

// The last of the most likely candidates that together hold at least `mass` (the very last one when
// all do not). By halves, as selecting an element by its place is: O(candidates), where sorting a
// flat row of 128 k tokens takes tens of milliseconds.
Candidate FindCutoff(std::vector<Candidate> candidates, const WeightFunction& weight, double mass) {
  auto begin = candidates.begin();
  auto end = candidates.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, RanksBefore);
    double sum = 0.0;
    for (auto c = begin; c != middle; ++c) sum += static_cast<double>(weight(c->logit));
    if (sum >= mass) {
      end = middle;
    } else {
      mass -= sum;
      begin = middle;
    }
  }
  return *begin;
}

// Draws from the most likely candidates that hold `mass`, walked in the order they are given in.
int32_t DrawFromMass(const std::vector<Candidate>& candidates, const WeightFunction& weight,
                     double mass, float uniform) {
  const Candidate last = FindCutoff(candidates, weight, mass);
  double kept = 0.0;
  for (const Candidate& c : candidates) {
    if (!RanksBefore(last, c)) kept += static_cast<double>(weight(c.logit));
  }
  const double target = static_cast<double>(uniform) * kept;
  double cumulative = 0.0;
  int32_t chosen = candidates.front().token_id;
  for (const Candidate& c : candidates) {
    const float w = weight(c.logit);
    if (w <= 0.0F || RanksBefore(last, c)) continue;
    chosen = c.token_id;
    cumulative += static_cast<double>(w);
    if (cumulative > target) break;
  }
  return chosen;
}

// Tokens among which the most likely ones that hold `mass` are, by id. The bar sinks until enough
// is above it; most rows of a trained model are done at the first one, with few candidates.
std::vector<Candidate> GatherMass(std::span<const float> logits, const WeightFunction& weight,
                                  double mass) {
  std::vector<Candidate> candidates;
  for (const float exponent : {-4.0F, -8.0F, -16.0F, -std::numeric_limits<float>::infinity()}) {
    candidates.clear();
    const float bar = weight.max_logit + exponent * weight.temperature;
    double gathered = 0.0;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (!(logits[i] >= bar)) continue;
      const float w = weight(logits[i]);
      if (w <= 0.0F) continue;
      gathered += static_cast<double>(w);
      candidates.push_back({.logit = logits[i], .token_id = static_cast<int32_t>(i)});
    }
    if (gathered >= mass) break;
  }
  return candidates;
}

}  // namespace

int32_t DrawToken(std::span<const float> logits, const Candidate& best, const SamplingRow& row,
                  float uniform) {
  const WeightFunction weight{.max_logit = best.logit,
                              .temperature = row.temperature,
                              .min_exponent = row.min_p > 0.0F
                                                  ? std::log(row.min_p)
                                                  : -std::numeric_limits<float>::infinity()};
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < logits.size()) {
    // min_p removes the tail of the same order, so it may as well come after the selection.
    const std::vector<Candidate> candidates = FindTop(logits, static_cast<size_t>(row.top_k));
    double total = 0.0;
    for (const Candidate& candidate : candidates) {
      total += static_cast<double>(weight(candidate.logit));
    }
    const double mass = row.top_p < 1.0F ? static_cast<double>(row.top_p) * total
                                         : std::numeric_limits<double>::infinity();
    return DrawFromMass(candidates, weight, mass, uniform);
  }
  const std::vector<double> sums = SumChunks(logits, weight);
  if (row.top_p < 1.0F) {
    const double mass = static_cast<double>(row.top_p) * Total(sums);
    return DrawFromMass(GatherMass(logits, weight, mass), weight, mass, uniform);
  }
  return DrawFromAll(logits, weight, sums, uniform);
}

}  // namespace nibble::engine
