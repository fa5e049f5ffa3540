// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// RtnMeasure and RtnEstimate once, over the vectors of an instruction set (Simd in rtn_avx2.cc and
// rtn_avx512vnni.cc). Everything is static: the sources that include this must not emit symbols
// that the linker could choose for other CPUs.
//
// What makes it quicker than the reference beside the vectors, to the same bits:
// - With -s for s a weight's quotient, level and error only change their signs, but for the range
//   of levels: 8 to -7 instead of 7 to -8. Both signs share the quotient and its rounding.
// - Where no quotient leaves -7..7 the two errors are one.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/quant/rtn_kernels.h"

// Loops over registers must be unrolled, or the registers become memory.
#define NIBBLE_RTN_UNROLL _Pragma("GCC unroll 8")

namespace nibble::kernels {

// Per scale, of the magnitudes above 0 first and then of the same below 0: the sixteen running
// sums, and the squares after the last whole sixteen.
struct RtnSums {
  alignas(64) float lanes[2 * RtnTrial::kMaxScales][kRtnLanes];
  alignas(64) float tail[2 * RtnTrial::kMaxScales][kRtnLanes];
};

// Adds the squares of the errors of some weights. kClips: levels may leave -7..7, and sums[j][1] is
// for the scale below 0; otherwise that is the same and left out.
template <class Simd, int kScales, bool kClips>
static inline void RtnAddErrors(typename Simd::Floats w, const typename Simd::Floats* scales,
                                const typename Simd::Floats* inverses,
                                typename Simd::Floats (*sums)[2]) {
  using Floats = typename Simd::Floats;
  const auto add = [w](Floats scale, Floats level, Floats* sum) {
    const Floats error = Simd::Sub(w, Simd::Mul(scale, level));
    *sum = Simd::Add(*sum, Simd::Mul(error, error));
  };
  NIBBLE_RTN_UNROLL for (int j = 0; j < kScales; ++j) {
    const Floats level = Simd::Round(Simd::Mul(w, inverses[j]));
    if constexpr (kClips) {
      const Floats above = Simd::Min(Simd::Max(level, Simd::Set1(-8.0F)), Simd::Set1(7.0F));
      const Floats below = Simd::Min(Simd::Max(level, Simd::Set1(-7.0F)), Simd::Set1(8.0F));
      add(scales[j], above, &sums[j][0]);
      add(scales[j], below, &sums[j][1]);
    } else {
      add(scales[j], level, &sums[j][0]);
    }
  }
}

// The sums of the scales `which`.
template <class Simd, int kScales, bool kClips>
static inline void RtnSumErrors(const float* weights, int64_t count, const float* scales,
                                const int* which, RtnSums* result) {
  using Floats = typename Simd::Floats;
  constexpr int kMax = RtnTrial::kMaxScales;
  Floats scale[kScales];
  Floats inverse[kScales];
  NIBBLE_RTN_UNROLL for (int j = 0; j < kScales; ++j) {
    scale[j] = Simd::Set1(scales[which[j]]);
    inverse[j] = Simd::Set1(1.0F / scales[which[j]]);
  }
  const int64_t whole = count / kRtnLanes * kRtnLanes;
  for (int part = 0; part < kRtnLanes; part += Simd::kWidth) {
    Floats sums[kScales][2];
    NIBBLE_RTN_UNROLL for (int j = 0; j < kScales; ++j) sums[j][0] = sums[j][1] = Simd::Zero();
    for (int64_t i = part; i < whole; i += kRtnLanes) {
      RtnAddErrors<Simd, kScales, kClips>(Simd::Load(weights + i), scale, inverse, sums);
    }
    NIBBLE_RTN_UNROLL for (int j = 0; j < kScales; ++j) {
      Simd::Store(result->lanes[which[j]] + part, sums[j][0]);
      Simd::Store(result->lanes[kMax + which[j]] + part, sums[j][kClips ? 1 : 0]);
    }
    if (whole == count) continue;
    // Lanes after the last weight hold 0, whose error is 0.
    const Floats rest = Simd::LoadFirst(weights + whole + part, count - whole - part);
    NIBBLE_RTN_UNROLL for (int j = 0; j < kScales; ++j) sums[j][0] = sums[j][1] = Simd::Zero();
    RtnAddErrors<Simd, kScales, kClips>(rest, scale, inverse, sums);
    NIBBLE_RTN_UNROLL for (int j = 0; j < kScales; ++j) {
      Simd::Store(result->tail[which[j]] + part, sums[j][0]);
      Simd::Store(result->tail[kMax + which[j]] + part, sums[j][kClips ? 1 : 0]);
    }
  }
}

template <class Simd, bool kClips>
static inline void RtnSumErrors(const float* weights, int64_t count, const float* scales,
                                const int* which, int num, RtnSums* sums) {
  int i = 0;
  for (; i + 3 <= num; i += 3) {
    RtnSumErrors<Simd, 3, kClips>(weights, count, scales, which + i, sums);
  }
  if (num - i == 2) RtnSumErrors<Simd, 2, kClips>(weights, count, scales, which + i, sums);
  if (num - i == 1) RtnSumErrors<Simd, 1, kClips>(weights, count, scales, which + i, sums);
}

// totals[r] += row r's lanes, one after the other, for four rows.
static inline __m128 RtnAddInOrder(const float (*rows)[kRtnLanes], __m128 totals) {
  for (int lane = 0; lane < kRtnLanes; lane += 4) {
    __m128 a = _mm_load_ps(rows[0] + lane);
    __m128 b = _mm_load_ps(rows[1] + lane);
    __m128 c = _mm_load_ps(rows[2] + lane);
    __m128 d = _mm_load_ps(rows[3] + lane);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    totals = _mm_add_ps(_mm_add_ps(_mm_add_ps(_mm_add_ps(totals, a), b), c), d);
  }
  return totals;
}

template <class Simd>
static inline void RtnMeasureImpl(const float* weights, int64_t count, float max_abs,
                                  RtnTrial* trial) {
  constexpr int kMax = RtnTrial::kMaxScales;
  static_assert(kMax % 4 == 0, "errors are added up by fours");
  int clipping[kMax];
  int whole[kMax];
  int num_clipping = 0;
  int num_whole = 0;
  for (int i = 0; i < trial->num_scales; ++i) {
    // 7.5 rounds to 8. No other quotient is above this one, as products round monotonically.
    if (max_abs * (1.0F / trial->scales[i]) < 7.5F) {
      whole[num_whole++] = i;
    } else {
      clipping[num_clipping++] = i;
    }
  }
  RtnSums sums;
  RtnSumErrors<Simd, true>(weights, count, trial->scales, clipping, num_clipping, &sums);
  RtnSumErrors<Simd, false>(weights, count, trial->scales, whole, num_whole, &sums);
  const bool has_tail = count % kRtnLanes != 0;
  for (int i = 0; i < trial->num_scales; i += 4) {
    for (int row = trial->num_scales; row < i + 4; ++row) {  // of a last, incomplete four
      for (int lane = 0; lane < kRtnLanes; ++lane) {
        sums.lanes[row][lane] = sums.lanes[kMax + row][lane] = 0.0F;
        sums.tail[row][lane] = sums.tail[kMax + row][lane] = 0.0F;
      }
    }
    for (int sign = 0; sign < 2; ++sign) {
      const int row = sign * kMax + i;
      __m128 totals = _mm_setzero_ps();
      if (has_tail) totals = RtnAddInOrder(sums.tail + row, totals);
      _mm_storeu_ps(trial->errors[sign] + i, RtnAddInOrder(sums.lanes + row, totals));
    }
  }
}

// Squared errors of a group at scales of this sign, interpolated.
template <class Simd>
static inline typename Simd::Floats RtnEstimateErrors(const float* known, float unit,
                                                      typename Simd::Floats scales) {
  using Floats = typename Simd::Floats;
  constexpr int kLast = kRtnClips - 1;
  const Floats one = Simd::Set1(1.0F);
  const Floats last = Simd::Set1(static_cast<float>(kLast));
  const Floats position =
      Simd::Div(Simd::Sub(Simd::Div(scales, Simd::Set1(unit)), Simd::Set1(kRtnFirstClip)),
                Simd::Set1(kRtnClipStep));
  const Floats index = Simd::Truncate(position);
  const Floats low = Simd::Lookup(known, index);
  const Floats high = Simd::Lookup(known, Simd::Add(index, one));
  Floats result = Simd::Add(low, Simd::Mul(Simd::Sub(position, index), Simd::Sub(high, low)));
  const Floats beyond = Simd::Sub(one, position);
  result = Simd::SelectAtMost(position, Simd::Zero(),
                              Simd::Mul(Simd::Mul(Simd::Set1(known[0]), beyond), beyond), result);
  if (Simd::AnyAtMost(last, position)) {
    const Floats ratio = Simd::Div(scales, Simd::Set1(unit * RtnClipFactor(kLast)));
    result = Simd::SelectAtMost(
        last, position, Simd::Mul(Simd::Mul(Simd::Set1(known[kLast]), ratio), ratio), result);
  }
  return result;
}

template <class Simd>
static inline void RtnEstimateImpl(const RtnGroup* groups, int64_t num_groups,
                                   const float* channels, int num_channels, float* totals) {
  using Floats = typename Simd::Floats;
  const Floats one = Simd::Set1(1.0F);
  for (int i = 0; i < num_channels; i += Simd::kWidth) {
    const Floats channel = Simd::Load(channels + i);
    Floats total = Simd::Zero();
    for (int64_t g = 0; g < num_groups; ++g) {
      const RtnGroup& group = groups[g];
      if (!(group.max_abs >= kRtnTiny)) continue;
      const float unit = group.max_abs / 7.0F;
      Floats least = Simd::Set1(__builtin_inff());
      for (int sign = 0; sign < 2; ++sign) {
        const Floats max = Simd::Set1(static_cast<float>(RtnMaxInteger(sign)));
        const Floats below = Simd::Truncate(Simd::Div(Simd::Set1(group.best_scale[sign]), channel));
        for (int j = 0; j < 2; ++j) {
          const Floats integer = j == 0 ? below : Simd::Add(below, one);
          const Floats magnitude = Simd::Min(Simd::Max(integer, one), max);
          const Floats error =
              RtnEstimateErrors<Simd>(group.errors[sign], unit, Simd::Mul(magnitude, channel));
          least = Simd::Min(error, least);  // the second where the first is NaN
        }
      }
      total = Simd::Add(total, least);
    }
    Simd::Store(totals + i, total);
  }
}

}  // namespace nibble::kernels

#undef NIBBLE_RTN_UNROLL
