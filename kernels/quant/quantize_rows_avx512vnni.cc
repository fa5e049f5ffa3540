// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx512.h"
#include "kernels/quant/quantize_rows_kernels.h"

namespace nibble::kernels::avx512vnni {
QuantizedRow QuantizeRow(const float* x, int64_t k, int8_t* values) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i max = _mm512_setzero_si512();
  for (int64_t i = 0; i < k; i += 16) {
    const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(FirstLanes(k - i), x + i));
    max = _mm512_max_epi32(max, _mm512_and_si512(bits, magnitude));
  }
  const int32_t max_bits = _mm512_reduce_max_epi32(max);
  if (max_bits >= kNonFiniteBits || max_bits < kSmallestMaxBits) {
    for (int64_t i = 0; i < k; ++i) values[i] = 0;
    return {max_bits < kNonFiniteBits ? 0.0F : __builtin_nanf(""), 0};
  }
  const float max_abs = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(max_bits)));
  const __m512 inverse = _mm512_set1_ps(127.0F / max_abs);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < k; i += 16) {
    const __mmask16 mask = FirstLanes(k - i);
    const __m512i q =
        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), inverse));
    sum = _mm512_add_epi32(sum, q);
    _mm_mask_storeu_epi8(values + i, mask, _mm512_cvtepi32_epi8(q));
  }
  return {max_abs / 127.0F, _mm512_reduce_add_epi32(sum)};
}

}  // namespace nibble::kernels::avx512vnni
