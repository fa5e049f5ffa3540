// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The loops of round to nearest, once per instruction set; plain data only, included by sources
// that are compiled for a higher set than the rest of the program. All sets give the same bits.
#pragma once

#include <cstdint>

namespace nibble::kernels {

// Clipping grid of a group: scale = max|w| / 7 * RtnClipFactor(i). 1 keeps every weight in range;
// smaller factors clip the largest weights for finer steps on the rest, which pays for groups of up
// to some hundred weights. 7/8 still represents a negative maximum exactly.
inline constexpr int kRtnClips = 12;
inline constexpr float kRtnFirstClip = 0.55F;
inline constexpr float kRtnClipStep = 0.045F;  // up to 1.045
static constexpr float RtnClipFactor(int i) {
  return kRtnFirstClip + kRtnClipStep * static_cast<float>(i);
}

// Below this a group is stored as zeros: 1 / scale would leave the float range.
inline constexpr float kRtnTiny = 1e-30F;

// A scale is S * c with S in 1..16 and in -15..-1 (see FoldedScales); index 0 means scales above 0,
// index 1 those below.
static constexpr int RtnMaxInteger(int sign) { return sign == 0 ? 16 : 15; }

inline constexpr int kRtnLanes = 16;

// Some scales for one group: magnitudes, each measured with both signs.
struct RtnTrial {
  static constexpr int kMaxScales = 12;

  int num_scales = 0;
  float scales[kMaxScales];     // above 0 and above max|w| / 100
  float errors[2][kMaxScales];  // of the result: the squared errors of the group
};

// What is known about a group before its channel's scale is chosen.
struct RtnGroup {
  const float* weights;
  int64_t count;
  float max_abs;
  float errors[2][16];  // [kRtnClips]: squared error at max_abs / 7 * RtnClipFactor(i); 0 after
  float best_scale[2];  // the magnitudes of least error; 0 for a group of zeros
  int best_sign;        // index of the sign of less error
};

// Each set has these:
//
// RtnMaxAbs: the largest magnitude of `count` weights; NaN or infinite where one of them is.
//
// RtnMeasure: the squared errors of a group at the scales of `trial`, which fills it,
//     sum over k of (w_k - s * clamp(round(w_k / s), -8, 7))^2,   w_k / s as w_k * (1 / s),
// in sixteen running sums (lane k % 16 of the whole sixteens), then one sum of the squares after
// the last whole sixteen and of the lanes, in order.
//
// RtnEstimate: totals[i] = the sum over groups, in order, of the least error that the group has at
// S * channels[i], S one of the two integers around its best scale of each sign, errors
// interpolated from those on the clipping grid. `num_channels` is a multiple of 16.
//
// RtnEncode: codes[k] = clamp(round(w_k * inverse), -8, 7) + 8, a byte each.
namespace ref {
float RtnMaxAbs(const float* weights, int64_t count);
void RtnMeasure(const float* weights, int64_t count, float max_abs, RtnTrial* trial);
void RtnEstimate(const RtnGroup* groups, int64_t num_groups, const float* channels,
                 int num_channels, float* totals);
void RtnEncode(const float* weights, int64_t count, float inverse, uint8_t* codes);
}  // namespace ref
namespace avx2 {
float RtnMaxAbs(const float* weights, int64_t count);
void RtnMeasure(const float* weights, int64_t count, float max_abs, RtnTrial* trial);
void RtnEstimate(const RtnGroup* groups, int64_t num_groups, const float* channels,
                 int num_channels, float* totals);
void RtnEncode(const float* weights, int64_t count, float inverse, uint8_t* codes);
}  // namespace avx2
namespace avx512vnni {
float RtnMaxAbs(const float* weights, int64_t count);
void RtnMeasure(const float* weights, int64_t count, float max_abs, RtnTrial* trial);
void RtnEstimate(const RtnGroup* groups, int64_t num_groups, const float* channels,
                 int num_channels, float* totals);
void RtnEncode(const float* weights, int64_t count, float inverse, uint8_t* codes);
}  // namespace avx512vnni

}  // namespace nibble::kernels
