// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The levels a scheme allows, and codes on their way into a QuantizedWeight. Used by the methods of
// this folder.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

struct Grid {
  int low = -8;
  int high = 7;
  int64_t group_size = 0;
  int64_t num_groups = 0;
};

// REQUIRES CheckScheme(scheme, k).
inline Grid GridOf(const WeightScheme& scheme, int64_t k) {
  if (scheme.bits == 8) return {.low = -127, .high = 127, .group_size = k, .num_groups = 1};
  return {
      .low = -8, .high = 7, .group_size = scheme.group_size, .num_groups = k / scheme.group_size};
}

// Nearest integer, ties to even, for |x| < 2^22: std::nearbyint is a call on the baseline
// instruction set and would keep loops scalar.
inline float RoundToInteger(float x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

// The level next to `x`, which is in units of the scale.
inline float RoundToLevel(float x, float low, float high) {
  return RoundToInteger(std::min(std::max(x, low), high));
}

// Rounds to 16 significant bits: S * c, S at most 16, is then exact in float32.
float RoundChannelScale(float value);

// codes [n, k] in low..high, scales [n, num_groups].
QuantizedWeight PackCodes(int64_t n, int64_t k, const WeightScheme& scheme,
                          const std::vector<int8_t>& codes, std::vector<float> scales);

// sqrt(sum of errors / sum of signals), both squared already; 0 where there is no signal.
double RelativeError(const std::vector<double>& errors, const std::vector<double>& signals);

// Above this the squared error of a channel could leave the float range, and searches with it.
inline constexpr float kLargestWeight = 1e15F;
// INVALID_ARGUMENT naming the first weight that is not finite or larger.
absl::Status CheckFinite(const float* w, int64_t n, int64_t k, ThreadPool* pool);
// The same of a whole matrix, named, and that its weights are as many as its shape says.
absl::Status CheckMatrix(const Matrix& matrix, ThreadPool* pool);
// `scales` [n, num_groups] such that each is 0 or, with its inverse, an ordinary number: one below
// 1e-36 in magnitude (of weights that are nothing beside any others) becomes 0, with all of its row
// where scales are folded. INVALID_ARGUMENT for another number of scales and for 1e36 and more.
absl::StatusOr<std::vector<float>> OrdinaryScales(std::vector<float> scales, int64_t n,
                                                  int64_t num_groups, const WeightScheme& scheme);

}  // namespace nibble::quantize
