// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/adjust.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace nibble::engine {
namespace {

bool InRow(std::span<const float> logits, int32_t id) {
  return id >= 0 && static_cast<size_t>(id) < logits.size();
}

void ApplyRepetitionPenalty(std::span<float> logits, const SamplingRow& row) {
  std::vector<bool> seen(logits.size());
  const auto penalize = [&](const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) {
      if (!InRow(logits, id) || seen[static_cast<size_t>(id)]) continue;
      seen[static_cast<size_t>(id)] = true;
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0.0F ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    }
  };
  penalize(row.prompt_token_ids);
  penalize(row.output_token_ids);
}

void ApplyOutputPenalties(std::span<float> logits, const SamplingRow& row) {
  std::vector<int32_t> ids = row.output_token_ids;
  std::sort(ids.begin(), ids.end());
  for (auto begin = ids.begin(); begin != ids.end();) {
    const auto end = std::upper_bound(begin, ids.end(), *begin);
    if (InRow(logits, *begin)) {
      float& logit = logits[static_cast<size_t>(*begin)];
      logit -= row.frequency_penalty * static_cast<float>(end - begin);
      logit -= row.presence_penalty;
    }
    begin = end;
  }
}

}  // namespace

bool HasAdjustments(const SamplingRow& row) {
  return !row.logit_bias.empty() || !row.banned_token_ids.empty() ||
         row.repetition_penalty != 1.0F || row.presence_penalty != 0.0F ||
         row.frequency_penalty != 0.0F;
}

void AdjustLogits(std::span<float> logits, const SamplingRow& row) {
  for (const auto& [id, bias] : row.logit_bias) {
    if (InRow(logits, id)) logits[static_cast<size_t>(id)] += bias;
  }
  for (const int32_t id : row.banned_token_ids) {
    if (InRow(logits, id)) {
      logits[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
    }
  }
  if (row.repetition_penalty != 1.0F) ApplyRepetitionPenalty(logits, row);
  if (row.presence_penalty != 0.0F || row.frequency_penalty != 0.0F) {
    ApplyOutputPenalties(logits, row);
  }
}

}  // namespace nibble::engine
