// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Vector mathematics for files compiled for AVX2 and FMA. Everything is static: these files must
// not emit symbols that the linker could choose for other CPUs. Bit-equal to math_avx512.h.
#pragma once

#include <immintrin.h>

namespace nibble::kernels::avx2 {

// exp within 1 unit in the last place: 0 below -104, +inf above 88.8, NaN stays NaN, exp(0) is
// exactly 1.
static inline __m256 Exp(__m256 x) {
  // Operand order keeps NaN: min and max return the second operand then.
  x = _mm256_min_ps(_mm256_set1_ps(90.0F), x);
  x = _mm256_max_ps(_mm256_set1_ps(-105.0F), x);
  // x = n ln2 + r, |r| <= ln2 / 2.
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0F)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e43p-1F), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-0x1.05c61p-29F), r);
  // Taylor to the 7th power: the remainder at ln2 / 2 is 5e-9, a tenth of float's rounding.
  __m256 poly = _mm256_set1_ps(1.0F / 5040.0F);
  poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(1.0F / 720.0F));
  poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(1.0F / 120.0F));
  poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(1.0F / 24.0F));
  poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(1.0F / 6.0F));
  poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(0.5F));
  poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(1.0F));
  poly = _mm256_fmadd_ps(poly, r, _mm256_set1_ps(1.0F));
  // Times 2^n in two steps that each stay in the range of normal floats: n is in -152..130.
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i first = _mm256_srai_epi32(exponent, 1);
  const __m256i second = _mm256_sub_epi32(exponent, first);
  const __m256i bias = _mm256_set1_epi32(127);
  poly = _mm256_mul_ps(poly,
                       _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23)));
  return _mm256_mul_ps(poly,
                       _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23)));
}

// Halves added onto each other: lane i with lane i + 4, then i + 2, then i + 1.
static inline float ReduceAdd(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

static inline float ReduceMax(__m256 x) {
  __m128 max = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  max = _mm_max_ps(max, _mm_movehl_ps(max, max));
  return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}

// Lanes [0, count), count clamped to 0..8, for masked loads and stores.
static inline __m256i FirstLanes(long count) {
  const int clamped = count < 0 ? 0 : count > 8 ? 8 : static_cast<int>(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(clamped), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

}  // namespace nibble::kernels::avx2
