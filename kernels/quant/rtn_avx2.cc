// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx2.h"
#include "kernels/quant/rtn_impl.h"
#include "kernels/quant/rtn_kernels.h"

namespace nibble::kernels::avx2 {
namespace {

struct Simd {
  using Floats = __m256;
  static constexpr int kWidth = 8;

  static Floats Zero() { return _mm256_setzero_ps(); }
  static Floats Set1(float x) { return _mm256_set1_ps(x); }
  static Floats Load(const float* from) { return _mm256_loadu_ps(from); }
  static Floats LoadFirst(const float* from, int64_t count) {
    return _mm256_maskload_ps(from, FirstLanes(count));
  }
  static void Store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
  static Floats Add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats Sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats Mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats Div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  static Floats Min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static Floats Max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats Round(Floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Floats Truncate(Floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  }
  // table[index] of sixteen; any value where index is not in 0..15.
  static Floats Lookup(const float* table, Floats index) {
    const __m256i i = _mm256_cvttps_epi32(index);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), i);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), i);
    // The sign bit of the choice is the index's bit of value 8.
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
  }
  // then where a <= b, otherwise `other`.
  static Floats SelectAtMost(Floats a, Floats b, Floats then, Floats other) {
    return _mm256_blendv_ps(other, then, _mm256_cmp_ps(a, b, _CMP_LE_OQ));
  }
  static bool AnyAtMost(Floats a, Floats b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)) != 0;
  }
};

}  // namespace

float RtnMaxAbs(const float* weights, int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const int64_t whole = count / 8 * 8;
  const __m256i rest =
      _mm256_castps_si256(_mm256_maskload_ps(weights + whole, FirstLanes(count - whole)));
  __m256i max = _mm256_and_si256(rest, magnitude);
  for (int64_t i = 0; i < whole; i += 8) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(weights + i));
    max = _mm256_max_epi32(max, _mm256_and_si256(bits, magnitude));
  }
  __m128i lanes = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
  lanes = _mm_max_epi32(lanes, _mm_shuffle_epi32(lanes, 0x4e));
  lanes = _mm_max_epi32(lanes, _mm_shuffle_epi32(lanes, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(lanes));
}

void RtnMeasure(const float* weights, int64_t count, float max_abs, RtnTrial* trial) {
  RtnMeasureImpl<Simd>(weights, count, max_abs, trial);
}

void RtnEstimate(const RtnGroup* groups, int64_t num_groups, const float* channels,
                 int num_channels, float* totals) {
  RtnEstimateImpl<Simd>(groups, num_groups, channels, num_channels, totals);
}

void RtnEncode(const float* weights, int64_t count, float inverse, uint8_t* codes) {
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256 low = _mm256_set1_ps(-8.0F);
  const __m256 high = _mm256_set1_ps(7.0F);
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_maskload_ps(weights + i, FirstLanes(count - i)), factor);
    const __m256i level = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x, low), high));
    const __m256i code = _mm256_add_epi32(level, _mm256_set1_epi32(8));
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    if (count - i >= 8) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + i), bytes);
    } else {
      alignas(16) uint8_t last[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(last), bytes);
      for (int64_t j = i; j < count; ++j) codes[j] = last[j - i];
    }
  }
}

}  // namespace nibble::kernels::avx2
