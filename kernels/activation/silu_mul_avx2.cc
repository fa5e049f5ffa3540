// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/activation/silu_mul_row.h"
#include "kernels/device/math_avx2.h"

namespace nibble::kernels::avx2 {
namespace {

inline __m256 SiluMulLanes(__m256 gate, __m256 up) {
  const __m256 negative = _mm256_xor_ps(gate, _mm256_set1_ps(-0.0F));
  const __m256 denominator = _mm256_add_ps(_mm256_set1_ps(1.0F), Exp(negative));
  return _mm256_mul_ps(_mm256_div_ps(gate, denominator), up);
}

}  // namespace

void SiluMulRow(const float* gate, const float* up, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(y + i, SiluMulLanes(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
  }
  if (i == count) return;
  const __m256i mask = FirstLanes(count - i);
  _mm256_maskstore_ps(
      y + i, mask,
      SiluMulLanes(_mm256_maskload_ps(gate + i, mask), _mm256_maskload_ps(up + i, mask)));
}

}  // namespace nibble::kernels::avx2
