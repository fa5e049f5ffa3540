// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Vector mathematics for files compiled for AVX-512. Everything is static: these files must not
// emit symbols that the linker could choose for other CPUs. Bit-equal to math_avx2.h.
#pragma once

#include <immintrin.h>

namespace nibble::kernels::avx512vnni {

// exp within 1 unit in the last place: 0 below -104, +inf above 88.8, NaN stays NaN, exp(0) is
// exactly 1.
static inline __m512 Exp(__m512 x) {
  // Operand order keeps NaN: min and max return the second operand then.
  x = _mm512_min_ps(_mm512_set1_ps(90.0F), x);
  x = _mm512_max_ps(_mm512_set1_ps(-105.0F), x);
  // x = n ln2 + r, |r| <= ln2 / 2.
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0F)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e43p-1F), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-0x1.05c61p-29F), r);
  // Taylor to the 7th power: the remainder at ln2 / 2 is 5e-9, a tenth of float's rounding.
  __m512 poly = _mm512_set1_ps(1.0F / 5040.0F);
  poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(1.0F / 720.0F));
  poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(1.0F / 120.0F));
  poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(1.0F / 24.0F));
  poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(1.0F / 6.0F));
  poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(0.5F));
  poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(1.0F));
  poly = _mm512_fmadd_ps(poly, r, _mm512_set1_ps(1.0F));
  return _mm512_scalef_ps(poly, n);
}

// Halves added onto each other: lane i with lane i + 8, then i + 4, i + 2, i + 1.
static inline float ReduceAdd(__m512 x) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

static inline float ReduceMax(__m512 x) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 max = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  max = _mm_max_ps(max, _mm_movehl_ps(max, max));
  return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}

// Lanes [0, count), count clamped to 0..16, for masked loads and stores.
static inline __mmask16 FirstLanes(long count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffffU : count <= 0 ? 0U : (1U << count) - 1U);
}

}  // namespace nibble::kernels::avx512vnni
