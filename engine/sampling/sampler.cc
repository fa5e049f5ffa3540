// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/sampling/adjust.h"
#include "engine/sampling/draw.h"
#include "engine/sampling/logprobs.h"
#include "engine/sampling/top_tokens.h"

namespace nibble::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// +inf logits share all of the mass; everything else loses it.
void CollapseInfinities(std::span<float> logits) {
  for (float& logit : logits) logit = logit == kInfinity ? 0.0F : -kInfinity;
}

int32_t ChooseToken(std::span<float> logits, const SamplingRow& row, Isa isa) {
  Candidate best = FindBest(logits);
  if (!(row.temperature > 0.0F) || best.logit == -kInfinity) return best.token_id;
  if (best.logit == kInfinity) {
    CollapseInfinities(logits);
    best.logit = 0.0F;
  }
  const float uniform = UniformFromCounter(row.seed, static_cast<uint64_t>(row.output_index));
  return DrawToken(logits, best, row, uniform, isa);
}

}  // namespace

SampledToken SampleRow(std::span<float> logits, const SamplingRow& row, Isa isa) {
  SampledToken token;
  // As good as free: the first logit of a sound row is finite.
  token.no_finite_logit = std::ranges::none_of(logits, [](float x) { return std::isfinite(x); });
  if (token.no_finite_logit) return token;
  const bool adjusted = HasAdjustments(row);
  if (row.logprobs < 0) {
    if (adjusted) AdjustLogits(logits, row);
    token.token_id = ChooseToken(logits, row, isa);
    return token;
  }
  const std::vector<float> raw(logits.begin(), logits.end());
  if (adjusted) AdjustLogits(logits, row);
  token.token_id = ChooseToken(logits, row, isa);
  token.logprobs = ComputeLogprobs(raw, token.token_id, row.logprobs, isa);
  return token;
}

StepOutput SampleRows(float* logits, int64_t vocab_size, std::span<const SamplingRow> rows,
                      ThreadPool* pool, Isa isa) {
  StepOutput output;
  output.tokens.resize(rows.size());
  pool->ParallelFor(static_cast<int64_t>(rows.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      output.tokens[static_cast<size_t>(row)] =
          SampleRow({logits + row * vocab_size, static_cast<size_t>(vocab_size)},
                    rows[static_cast<size_t>(row)], isa);
    }
  });
  return output;
}

}  // namespace nibble::engine
