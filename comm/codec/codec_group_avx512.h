// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is done to the values of a group, 2, 4 or 8 registers of 16, for the AVX-512 codec alone:
// everything is static.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "comm/codec/codec_planes_avx512.h"
#include "comm/codec/codec_scale.h"

namespace nibble::comm::avx512vnni {

// x * inverse + zero rounded to whole numbers, which the low halves of 32 bits then hold; all four
// made bytes with saturation, in the order of the values.
static inline __m512i QuantizeBytes(__m512 v0, __m512 v1, __m512 v2, __m512 v3, __m512 inverse,
                                    __m512 rounder) {
  const __m512i q0 = _mm512_castps_si512(_mm512_fmadd_ps(v0, inverse, rounder));
  const __m512i q1 = _mm512_castps_si512(_mm512_fmadd_ps(v1, inverse, rounder));
  const __m512i q2 = _mm512_castps_si512(_mm512_fmadd_ps(v2, inverse, rounder));
  const __m512i q3 = _mm512_castps_si512(_mm512_fmadd_ps(v3, inverse, rounder));
  const __m512i words02 = _mm512_mask_blend_epi16(0xaaaaaaaaU, q0, _mm512_slli_epi32(q2, 16));
  const __m512i words13 = _mm512_mask_blend_epi16(0xaaaaaaaaU, q1, _mm512_slli_epi32(q3, 16));
  // A 16-byte lane: 4 times v0, v2, then 4 times v1, v3.
  const __m512i bytes = _mm512_packus_epi16(words02, words13);
  const __m512i by_register = _mm512_shuffle_epi8(
      bytes,
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
  return _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), by_register);
}

struct Range {
  float low;   // <= 0
  float high;  // >= 0
  bool nan;
};

// The least and the greatest value, 0 among them. With NaN among the values only `nan` counts.
template <int kVecs>
static inline Range RangeOf(const __m512 (&v)[kVecs]) {
  __m512 low = _mm512_min_ps(_mm512_setzero_ps(), v[0]);
  __m512 high = _mm512_max_ps(_mm512_setzero_ps(), v[0]);
  __mmask16 nan = _mm512_cmp_ps_mask(v[0], v[1], _CMP_UNORD_Q);
  NIBBLE_UNROLL for (int i = 1; i < kVecs; ++i) {
    low = _mm512_min_ps(low, v[i]);
    high = _mm512_max_ps(high, v[i]);
  }
  NIBBLE_UNROLL for (int i = 2; i < kVecs; i += 2) {
    nan = static_cast<__mmask16>(nan | _mm512_cmp_ps_mask(v[i], v[i + 1], _CMP_UNORD_Q));
  }
  // Both at once: the greatest of -low in the upper half, that of high in the lower.
  const __m512 negative = _mm512_sub_ps(_mm512_setzero_ps(), low);
  const __m512 ends = _mm512_max_ps(_mm512_shuffle_f32x4(high, negative, 0x44),
                                    _mm512_shuffle_f32x4(high, negative, 0xee));
  __m512 most = _mm512_max_ps(ends, _mm512_shuffle_f32x4(ends, ends, 0xb1));
  most = _mm512_max_ps(most, _mm512_permute_ps(most, 0x4e));
  most = _mm512_max_ps(most, _mm512_permute_ps(most, 0xb1));
  return {-_mm256_cvtss_f32(_mm512_extractf32x8_ps(most, 1)), _mm512_cvtss_f32(most), nan != 0};
}

template <int kVecs>
static inline void Clip(__m512 (&v)[kVecs], float limit) {
  NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
    v[i] = _mm512_min_ps(_mm512_max_ps(v[i], _mm512_set1_ps(-limit)), _mm512_set1_ps(limit));
  }
}

// v[i] of lane l is value 16 i + l. As the reference: scaled, then distances 1, 2, 4 ...
template <int kVecs>
static inline void Rotate(__m512 (&v)[kVecs]) {
  const __m512 scale = _mm512_set1_ps(RotationScale(16 * kVecs));
  // In a register: the other one of a pair plus this one, which the upper one has negative.
  const __m512 minus = _mm512_set1_ps(-0.0F);
  NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
    __m512 x = _mm512_mul_ps(v[i], scale);
    x = _mm512_add_ps(_mm512_permute_ps(x, 0xb1), _mm512_mask_xor_ps(x, 0xaaaa, x, minus));
    x = _mm512_add_ps(_mm512_permute_ps(x, 0x4e), _mm512_mask_xor_ps(x, 0xcccc, x, minus));
    x = _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0xb1), _mm512_mask_xor_ps(x, 0xf0f0, x, minus));
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0x4e), _mm512_mask_xor_ps(x, 0xff00, x, minus));
  }
  NIBBLE_UNROLL for (int distance = 1; distance < kVecs; distance *= 2) {
    NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
      if ((i & distance) != 0) continue;
      const __m512 sum = _mm512_add_ps(v[i], v[i + distance]);
      const __m512 difference = _mm512_sub_ps(v[i], v[i + distance]);
      v[i] = sum;
      v[i + distance] = difference;
    }
  }
}

// Where the first of the values lies that equal `value`.
template <int kVecs>
static inline int Find(const __m512 (&v)[kVecs], float value) {
  int index = 0;
  NIBBLE_UNROLL for (int i = kVecs - 1; i >= 0; --i) {
    const unsigned mask = _mm512_cmp_ps_mask(v[i], _mm512_set1_ps(value), _CMP_EQ_OQ);
    index = mask != 0 ? 16 * i + __builtin_ctz(mask) : index;
  }
  return index;
}

template <int kVecs>
static inline void SetValue(__m512 (&v)[kVecs], int index, float value) {
  NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
    const auto mask = static_cast<__mmask16>(index / 16 == i ? 1U << (index % 16) : 0U);
    v[i] = _mm512_mask_mov_ps(v[i], mask, _mm512_set1_ps(value));
  }
}

}  // namespace nibble::comm::avx512vnni
