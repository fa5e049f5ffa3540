// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/kv/kv_convert.h"

namespace nibble::kernels::avx2 {
namespace {

// 8 lanes of 16 bits from the low halves of 8 lanes of 32.
inline __m128i Narrow(__m256i x) {
  return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

inline __m128i Bf16Lanes(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  // Half a unit, less one where the last kept bit is even: ties go to even.
  const __m256i last = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return Narrow(_mm256_blendv_epi8(rounded, quiet, is_nan));
}

inline __m128i F16Lanes(__m256 x) {
  const __m128i half = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m128i nan_mask =
      _mm_packs_epi32(_mm256_castsi256_si128(is_nan), _mm256_extracti128_si256(is_nan, 1));
  const __m128i sign = _mm_and_si128(half, _mm_set1_epi16(static_cast<int16_t>(0x8000)));
  return _mm_blendv_epi8(half, _mm_or_si128(sign, _mm_set1_epi16(0x7e00)), nan_mask);
}

template <__m128i (*kLanes)(__m256)>
inline void Convert(const float* in, uint16_t* out, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), kLanes(_mm256_loadu_ps(in + i)));
  }
  if (i == count) return;
  alignas(32) float tail[8] = {};
  alignas(16) uint16_t converted[8];
  for (int64_t j = i; j < count; ++j) tail[j - i] = in[j];
  _mm_store_si128(reinterpret_cast<__m128i*>(converted), kLanes(_mm256_load_ps(tail)));
  for (int64_t j = i; j < count; ++j) out[j] = converted[j - i];
}

}  // namespace

void ConvertToBf16(const float* in, uint16_t* out, int64_t count) {
  Convert<Bf16Lanes>(in, out, count);
}

void ConvertToF16(const float* in, uint16_t* out, int64_t count) {
  Convert<F16Lanes>(in, out, count);
}

}  // namespace nibble::kernels::avx2
