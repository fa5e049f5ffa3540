// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Weights of a row of logits relative to its largest, the unnormalized softmax that sampling and
// log probabilities walk over: a vocabulary of 128 k tokens is read several times per token drawn.
//
//   e[i] = (logits[i] - max_logit) / temperature
//   weight[i] = exp(e[i]) where e[i] >= min_exponent, else 0; NaN weighs nothing
//
// All instruction sets give the same bits, so that a draw does not depend on the machine.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"

namespace nibble::kernels {

struct SoftmaxWeights {
  const float* logits = nullptr;  // [count]
  int64_t count = 0;
  float max_logit = 0.0F;     // finite, none of the logits is above it
  float temperature = 1.0F;   // > 0
  float min_exponent = 0.0F;  // log(min_p), or -infinity
};

// weights [count].
void WeighLogits(const SoftmaxWeights& args, float* weights, Isa isa);

// Sums of the weights of kWeightChunk logits each, the last of what is left: [ceil(count /
// kWeightChunk)]. In double and in an order that depends on the place in the chunk alone: 8 lanes,
// then what does not fill them.
inline constexpr int64_t kWeightChunk = 256;
void SumWeights(const SoftmaxWeights& args, double* sums, Isa isa);

}  // namespace nibble::kernels
