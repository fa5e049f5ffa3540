// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Up to kWeightChunk logits, once per instruction set. Included by files compiled for one
// instruction set: no library headers that emit code.
#pragma once

#include <cstdint>

namespace nibble::kernels {

struct WeightChunk {
  const float* logits;  // [count]
  int64_t count;
  float max_logit;
  float temperature;
  float min_exponent;
};

// Writes weights [count] when it is not null, and returns their sum.
using WeighChunkFunction = double (*)(const WeightChunk& chunk, float* weights);

namespace ref {
double WeighChunk(const WeightChunk& chunk, float* weights);
}
namespace avx2 {
double WeighChunk(const WeightChunk& chunk, float* weights);
}
namespace avx512vnni {
double WeighChunk(const WeightChunk& chunk, float* weights);
}

}  // namespace nibble::kernels
