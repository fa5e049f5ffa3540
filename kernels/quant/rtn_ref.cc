// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The definition that every instruction set meets bit for bit.
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/quant/rtn_kernels.h"

namespace nibble::kernels::ref {
namespace {

constexpr float kSign[2] = {1.0F, -1.0F};

// Nearest integer, ties to even, for |x| < 2^22. std::nearbyint is a call on the baseline
// instruction set and would keep the loops below scalar.
inline float Round(float x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

inline float RoundToCode(float x) { return Round(std::min(std::max(x, -8.0F), 7.0F)); }

// Squared error of a group at `scale`, of either sign. Sixteen running sums in a fixed order: they
// fit vector registers, and the result does not depend on the machine.
float SquaredError(const float* weights, int64_t count, float scale) {
  float sums[kRtnLanes] = {};
  const float inverse = 1.0F / scale;
  int64_t i = 0;
  for (; i + kRtnLanes <= count; i += kRtnLanes) {
    for (int lane = 0; lane < kRtnLanes; ++lane) {
      const float w = weights[i + lane];
      const float error = w - scale * RoundToCode(w * inverse);
      sums[lane] += error * error;
    }
  }
  float total = 0.0F;
  for (; i < count; ++i) {
    const float error = weights[i] - scale * RoundToCode(weights[i] * inverse);
    total += error * error;
  }
  for (float sum : sums) total += sum;
  return total;
}

// Squared error at a scale of this sign and magnitude, interpolated; cheap enough to rank all
// channel scales.
float EstimateError(const RtnGroup& group, int sign, float scale) {
  const float* known = group.errors[sign];
  const float unit = group.max_abs / 7.0F;
  const float position = (scale / unit - kRtnFirstClip) / kRtnClipStep;
  if (position <= 0.0F) {  // ever more weights clip
    return known[0] * (1.0F - position) * (1.0F - position);
  }
  constexpr int kLast = kRtnClips - 1;
  if (position >= kLast) {  // no clipping: the error grows with the square of the step
    const float ratio = scale / (unit * RtnClipFactor(kLast));
    return known[kLast] * ratio * ratio;
  }
  const int i = static_cast<int>(position);
  const float fraction = position - static_cast<float>(i);
  return known[i] + fraction * (known[i + 1] - known[i]);
}

float LeastEstimate(const RtnGroup& group, float channel) {
  float least = INFINITY;
  for (int sign = 0; sign < 2; ++sign) {
    const auto below = static_cast<int>(std::min(group.best_scale[sign] / channel, 1e3F));
    for (int integer : {below, below + 1}) {
      const int magnitude = std::clamp(integer, 1, RtnMaxInteger(sign));
      const float error = EstimateError(group, sign, static_cast<float>(magnitude) * channel);
      if (error < least) least = error;
    }
  }
  return least;
}

}  // namespace

float RtnMaxAbs(const float* weights, int64_t count) {
  int32_t max_bits = 0;  // as integers, so that a NaN, whose bits are above infinity's, wins
  for (int64_t i = 0; i < count; ++i) {
    max_bits = std::max(max_bits, std::bit_cast<int32_t>(weights[i]) & 0x7fffffff);
  }
  return std::bit_cast<float>(max_bits);
}

void RtnMeasure(const float* weights, int64_t count, float, RtnTrial* trial) {
  for (int sign = 0; sign < 2; ++sign) {
    for (int i = 0; i < trial->num_scales; ++i) {
      trial->errors[sign][i] = SquaredError(weights, count, kSign[sign] * trial->scales[i]);
    }
  }
}

void RtnEstimate(const RtnGroup* groups, int64_t num_groups, const float* channels,
                 int num_channels, float* totals) {
  for (int i = 0; i < num_channels; ++i) {
    totals[i] = 0.0F;
    for (int64_t g = 0; g < num_groups; ++g) {
      if (groups[g].max_abs >= kRtnTiny) totals[i] += LeastEstimate(groups[g], channels[i]);
    }
  }
}

void RtnEncode(const float* weights, int64_t count, float inverse, uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<uint8_t>(static_cast<int>(RoundToCode(weights[i] * inverse)) + 8);
  }
}

}  // namespace nibble::kernels::ref
