// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/clip.h"

#include <algorithm>
#include <cmath>

#include "quantize/methods/grid.h"
#include "quantize/methods/rounding.h"

namespace nibble::quantize {
namespace {

// scale = max|w| / reach * ratio, reach the larger bound of the grid without its sign's extra step.
constexpr int kNumRatios = 20;
constexpr float kFirstRatio = 0.5F;
constexpr float kRatioStep = 0.03F;
constexpr int kNumChannels = 48;          // candidates for c[n], from largest / 16 up
constexpr int kMaxInteger[2] = {16, 15};  // S in 1..16 and -15..-1
constexpr float kTiny = 1e-30F;

// 2^(i / 24), the same bits with every C library.
float ChannelFactor(int i) {
  static constexpr float kOctave[24] = {
      1.0F,        1.02930224F, 1.05946314F, 1.09050775F, 1.12246203F, 1.15535271F,
      1.18920708F, 1.2240535F,  1.25992107F, 1.29683959F, 1.33483982F, 1.3739537F,
      1.41421354F, 1.45565319F, 1.49830711F, 1.54221082F, 1.58740103F, 1.63391542F,
      1.68179286F, 1.73107314F, 1.78179741F, 1.8340081F,  1.8877486F,  1.94306386F};
  return i < 24 ? kOctave[i] : 2.0F * kOctave[i - 24];
}

struct Channel {
  const float* weights;   // [k]
  const float* diagonal;  // [k]
  Grid grid;

  double Error(int64_t group, float scale) const {
    const float inverse = 1.0F / scale;
    double total = 0.0;
    for (int64_t i = group * grid.group_size; i < (group + 1) * grid.group_size; ++i) {
      const float level = RoundToLevel(weights[i] * inverse, static_cast<float>(grid.low),
                                       static_cast<float>(grid.high));
      const double error = weights[i] - scale * level;
      total += error * error * diagonal[i];
    }
    return total;
  }
};

// The free scale of each sign that costs least; 0 for a group of zeros.
void SurveyGroup(const Channel& channel, int64_t group, bool signs, float max_abs,
                 float best_scale[2], double best_error[2]) {
  for (int sign = 0; sign < (signs ? 2 : 1); ++sign) {
    best_error[sign] = INFINITY;
    for (int i = 0; i < kNumRatios; ++i) {
      const float ratio = kFirstRatio + kRatioStep * static_cast<float>(i);
      const float scale = max_abs / static_cast<float>(channel.grid.high) * ratio;
      const double error = channel.Error(group, sign == 0 ? scale : -scale);
      if (error < best_error[sign]) {
        best_error[sign] = error;
        best_scale[sign] = scale;
      }
    }
  }
}

struct Survey {
  float max_abs;
  float scale[2];
  double error[2];
};

double BestInteger(const Channel& channel, int64_t group, const Survey& survey, float c,
                   int* integer) {
  *integer = 1;
  if (survey.max_abs < kTiny) return 0.0;
  double best = INFINITY;
  for (int sign = 0; sign < 2; ++sign) {
    const auto below = static_cast<int>(std::min(survey.scale[sign] / c, 1e3F));
    for (int s = below; s <= below + 1; ++s) {
      const int magnitude = std::clamp(s, 1, kMaxInteger[sign]);
      const int candidate = sign == 0 ? magnitude : -magnitude;
      const double error = channel.Error(group, static_cast<float>(candidate) * c);
      if (error < best) {
        best = error;
        *integer = candidate;
      }
    }
  }
  return best;
}

void FoldScales(const Channel& channel, const std::vector<Survey>& surveys, float* scales) {
  float largest = 0.0F;
  for (const Survey& survey : surveys) {
    largest = std::max(largest, survey.scale[survey.error[1] < survey.error[0] ? 1 : 0]);
  }
  if (largest < kTiny) {
    std::fill_n(scales, surveys.size(), 0.0F);  // what has no common factor would not fold
    return;
  }
  double best = INFINITY;
  float best_channel = 0.0F;
  int integer = 0;
  for (int i = 0; i < kNumChannels; ++i) {
    const float c = RoundChannelScale(largest / 16.0F * ChannelFactor(i));
    double total = 0.0;
    for (size_t group = 0; group < surveys.size(); ++group) {
      total += BestInteger(channel, static_cast<int64_t>(group), surveys[group], c, &integer);
    }
    if (total < best) {
      best = total;
      best_channel = c;
    }
  }
  for (size_t group = 0; group < surveys.size(); ++group) {
    BestInteger(channel, static_cast<int64_t>(group), surveys[group], best_channel, &integer);
    scales[group] = static_cast<float>(integer) * best_channel;
  }
}

}  // namespace

absl::StatusOr<ClipResult> SearchClipping(const Matrix& matrix, const InputStatistics& statistics,
                                          const WeightScheme& scheme, ThreadPool* pool) {
  const int64_t n = matrix.n;
  const int64_t k = matrix.k;
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(matrix, pool));
  NIBBLE_RETURN_IF_ERROR(Annotate(CheckScheme(scheme, k), matrix.name));
  NIBBLE_RETURN_IF_ERROR(CheckStatistics(matrix.name, statistics, k));
  const Grid grid = GridOf(scheme, k);
  std::vector<float> diagonal(static_cast<size_t>(k));
  for (int64_t i = 0; i < k; ++i) {
    diagonal[static_cast<size_t>(i)] =
        static_cast<float>(statistics.hessian[static_cast<size_t>(i * (k + 1))]);
  }
  ClipResult result;
  result.scales.assign(static_cast<size_t>(n * grid.num_groups), 0.0F);
  pool->ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
    std::vector<Survey> surveys(static_cast<size_t>(grid.num_groups));
    for (int64_t row = begin; row < end; ++row) {
      const Channel channel = {matrix.weight.data() + row * k, diagonal.data(), grid};
      float* scales = result.scales.data() + row * grid.num_groups;
      for (int64_t group = 0; group < grid.num_groups; ++group) {
        Survey& survey = surveys[static_cast<size_t>(group)];
        survey = {};
        for (int64_t i = group * grid.group_size; i < (group + 1) * grid.group_size; ++i) {
          survey.max_abs = std::max(survey.max_abs, std::abs(channel.weights[i]));
        }
        if (survey.max_abs < kTiny) continue;
        SurveyGroup(channel, group, scheme.bits == 4, survey.max_abs, survey.scale, survey.error);
        const bool negative = scheme.bits == 4 && survey.error[1] < survey.error[0];
        scales[group] = negative ? -survey.scale[1] : survey.scale[0];
      }
      if (scheme.bits == 4 && scheme.folded_scales) FoldScales(channel, surveys, scales);
    }
  });
  return result;
}

}  // namespace nibble::quantize
