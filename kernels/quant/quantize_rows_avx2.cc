// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx2.h"
#include "kernels/quant/quantize_rows_kernels.h"

namespace nibble::kernels::avx2 {
namespace {

inline int32_t MaxLane(__m256i v) {
  __m128i r = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  r = _mm_max_epi32(r, _mm_shuffle_epi32(r, 0x4e));
  r = _mm_max_epi32(r, _mm_shuffle_epi32(r, 0xb1));
  return _mm_cvtsi128_si32(r);
}

inline int32_t SumLanes(__m256i v) {
  __m128i r = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0x4e));
  r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0xb1));
  return _mm_cvtsi128_si32(r);
}

}  // namespace

QuantizedRow QuantizeRow(const float* x, int64_t k, int8_t* values) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const int64_t whole = k / 8 * 8;
  const __m256i tail = FirstLanes(k - whole);
  __m256i max = _mm256_setzero_si256();
  for (int64_t i = 0; i < whole; i += 8) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + i));
    max = _mm256_max_epi32(max, _mm256_and_si256(bits, magnitude));
  }
  if (whole < k) {
    const __m256i bits = _mm256_castps_si256(_mm256_maskload_ps(x + whole, tail));
    max = _mm256_max_epi32(max, _mm256_and_si256(bits, magnitude));
  }
  const int32_t max_bits = MaxLane(max);
  if (max_bits >= kNonFiniteBits || max_bits < kSmallestMaxBits) {
    for (int64_t i = 0; i < k; ++i) values[i] = 0;
    return {max_bits < kNonFiniteBits ? 0.0F : __builtin_nanf(""), 0};
  }
  const float max_abs = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(max_bits)));
  const __m256 inverse = _mm256_set1_ps(127.0F / max_abs);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < whole; i += 8) {
    const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
    sum = _mm256_add_epi32(sum, q);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(values + i), _mm_packs_epi16(words, words));
  }
  if (whole < k) {
    const __m256i q =
        _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_maskload_ps(x + whole, tail), inverse));
    sum = _mm256_add_epi32(sum, q);
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), q);
    for (int64_t i = whole; i < k; ++i) values[i] = static_cast<int8_t>(lanes[i - whole]);
  }
  return {max_abs / 127.0F, SumLanes(sum)};
}

}  // namespace nibble::kernels::avx2
