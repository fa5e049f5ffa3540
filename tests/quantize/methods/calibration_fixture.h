// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Weights and calibration inputs that behave like those of a model, for tests of methods.
#pragma once

#include <cstdint>
#include <vector>

#include "quantize/methods/calibration_data.h"
#include "tests/testing/random.h"

namespace nibble::quantize {

// Inputs that are correlated, some channels larger than others. Columns in `dead` are always 0.
inline InputStatistics CorrelatedInputs(int64_t k, int64_t num_tokens, testing::Random* random,
                                        const std::vector<int64_t>& dead = {}) {
  InputStatistics statistics;
  statistics.k = k;
  statistics.num_tokens = num_tokens;
  statistics.hessian.resize(static_cast<size_t>(k * k));
  std::vector<float> size(static_cast<size_t>(k));
  for (float& s : size) s = random->Int(0, 9) == 0 ? 4.0F : random->Uniform(0.2F, 1.0F);
  for (const int64_t column : dead) size[static_cast<size_t>(column)] = 0.0F;
  std::vector<double> x(static_cast<size_t>(k));
  for (int64_t token = 0; token < num_tokens; ++token) {
    float previous = 0.0F;
    for (int64_t i = 0; i < k; ++i) {
      previous = 0.7F * previous + random->Normal();
      x[static_cast<size_t>(i)] = static_cast<double>(previous * size[static_cast<size_t>(i)]);
    }
    for (int64_t i = 0; i < k * k; ++i) {
      statistics.hessian[static_cast<size_t>(i)] += x[static_cast<size_t>(i / k)] *
                                                    x[static_cast<size_t>(i % k)] /
                                                    static_cast<double>(num_tokens);
    }
  }
  return statistics;
}

inline Matrix RandomMatrix(int64_t n, int64_t k, testing::Random* random) {
  return {.name = "layer.proj", .n = n, .k = k, .weight = random->Normals(n * k, 0.05F)};
}

inline InputStatistics IdentityInputs(int64_t k) {
  InputStatistics statistics;
  statistics.k = k;
  statistics.num_tokens = 1;
  statistics.hessian.resize(static_cast<size_t>(k * k));
  for (int64_t i = 0; i < k; ++i) statistics.hessian[static_cast<size_t>(i * (k + 1))] = 1.0;
  return statistics;
}

}  // namespace nibble::quantize
