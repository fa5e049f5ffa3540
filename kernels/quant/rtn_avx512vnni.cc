// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx512.h"
#include "kernels/quant/rtn_impl.h"
#include "kernels/quant/rtn_kernels.h"

namespace nibble::kernels::avx512vnni {
namespace {

struct Simd {
  using Floats = __m512;
  static constexpr int kWidth = 16;

  static Floats Zero() { return _mm512_setzero_ps(); }
  static Floats Set1(float x) { return _mm512_set1_ps(x); }
  static Floats Load(const float* from) { return _mm512_loadu_ps(from); }
  static Floats LoadFirst(const float* from, int64_t count) {
    return _mm512_maskz_loadu_ps(FirstLanes(count), from);
  }
  static void Store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static Floats Add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats Sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats Mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats Div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static Floats Min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static Floats Max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats Round(Floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Floats Truncate(Floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  }
  // table[index] of sixteen; any value where index is not in 0..15.
  static Floats Lookup(const float* table, Floats index) {
    return _mm512_permutexvar_ps(_mm512_cvttps_epi32(index), _mm512_loadu_ps(table));
  }
  // then where a <= b, otherwise `other`.
  static Floats SelectAtMost(Floats a, Floats b, Floats then, Floats other) {
    return _mm512_mask_mov_ps(other, _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ), then);
  }
  static bool AnyAtMost(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ) != 0; }
};

}  // namespace

float RtnMaxAbs(const float* weights, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i max = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 16) {
    const __m512i bits =
        _mm512_castps_si512(_mm512_maskz_loadu_ps(FirstLanes(count - i), weights + i));
    max = _mm512_max_epi32(max, _mm512_and_si512(bits, magnitude));
  }
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(max))));
}

void RtnMeasure(const float* weights, int64_t count, float max_abs, RtnTrial* trial) {
  RtnMeasureImpl<Simd>(weights, count, max_abs, trial);
}

void RtnEstimate(const RtnGroup* groups, int64_t num_groups, const float* channels,
                 int num_channels, float* totals) {
  RtnEstimateImpl<Simd>(groups, num_groups, channels, num_channels, totals);
}

void RtnEncode(const float* weights, int64_t count, float inverse, uint8_t* codes) {
  const __m512 factor = _mm512_set1_ps(inverse);
  const __m512 low = _mm512_set1_ps(-8.0F);
  const __m512 high = _mm512_set1_ps(7.0F);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = FirstLanes(count - i);
    const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weights + i), factor);
    const __m512i level = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(x, low), high));
    _mm_mask_storeu_epi8(codes + i, mask,
                         _mm512_cvtepi32_epi8(_mm512_add_epi32(level, _mm512_set1_epi32(8))));
  }
}

}  // namespace nibble::kernels::avx512vnni
