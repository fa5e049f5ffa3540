// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/activation/silu_mul_row.h"
#include "kernels/device/math_avx512.h"

namespace nibble::kernels::avx512vnni {

void SiluMulRow(const float* gate, const float* up, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = FirstLanes(count - i);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
    const __m512 negative = _mm512_xor_ps(g, _mm512_set1_ps(-0.0F));
    const __m512 denominator = _mm512_add_ps(_mm512_set1_ps(1.0F), Exp(negative));
    const __m512 silu = _mm512_div_ps(g, denominator);
    _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, up + i)));
  }
}

}  // namespace nibble::kernels::avx512vnni
