// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/sampling/exp.h"
#include "kernels/sampling/softmax_weights_chunk.h"

namespace nibble::kernels::ref {

double WeighChunk(const WeightChunk& chunk, float* weights) {
  double lanes[8] = {};
  double rest = 0.0;
  const int64_t whole = chunk.count / 8 * 8;
  for (int64_t i = 0; i < chunk.count; ++i) {
    // Subtracting first keeps tiny temperatures finite: 0 for the best token, -inf for the others.
    const float exponent = (chunk.logits[i] - chunk.max_logit) / chunk.temperature;
    const float weight = exponent >= chunk.min_exponent ? ExpNonPositive(exponent) : 0.0F;
    if (weights != nullptr) weights[i] = weight;
    (i < whole ? lanes[i % 8] : rest) += static_cast<double>(weight);
  }
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum + rest;
}

}  // namespace nibble::kernels::ref
