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

// The same over the first candidates that reach `mass`. `candidates` are sorted.
int32_t DrawFromSorted(const std::vector<Candidate>& candidates, const WeightFunction& weight,
                       double mass, float uniform) {
  double kept = 0.0;
  size_t num_kept = 0;
  while (num_kept < candidates.size() && (num_kept == 0 || kept < mass)) {
    kept += static_cast<double>(weight(candidates[num_kept].logit));
    ++num_kept;
  }
  const double target = static_cast<double>(uniform) * kept;
  double cumulative = 0.0;
  int32_t chosen = candidates.front().token_id;
  for (size_t i = 0; i < num_kept; ++i) {
    const float w = weight(candidates[i].logit);
    if (w <= 0.0F) break;
    chosen = candidates[i].token_id;
    cumulative += static_cast<double>(w);
    if (cumulative > target) break;
  }
  return chosen;
}

// The most likely tokens, sorted, that hold at least `mass`. Only they and little more are sorted:
// the bar sinks until enough is above it. Most rows of a trained model are done at the first bar.
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
  std::sort(candidates.begin(), candidates.end(), RanksBefore);
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
    return DrawFromSorted(candidates, weight, mass, uniform);
  }
  const std::vector<double> sums = SumChunks(logits, weight);
  if (row.top_p < 1.0F) {
    const double mass = static_cast<double>(row.top_p) * Total(sums);
    return DrawFromSorted(GatherMass(logits, weight, mass), weight, mass, uniform);
  }
  return DrawFromAll(logits, weight, sums, uniform);
}

}  // namespace nibble::engine
