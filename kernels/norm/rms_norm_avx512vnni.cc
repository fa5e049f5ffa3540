// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx512.h"
#include "kernels/norm/rms_norm_row.h"

namespace nibble::kernels::avx512vnni {

void NormalizeRow(const RmsNormRow& row) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < row.hidden; i += 16) {
    const __mmask16 mask = FirstLanes(row.hidden - i);
    __m512 x = _mm512_maskz_loadu_ps(mask, row.x + i);
    if (row.delta != nullptr) {
      x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, row.delta + i));
      _mm512_mask_storeu_ps(row.x + i, mask, x);
    }
    squares = _mm512_fmadd_ps(x, x, squares);
  }
  const float mean = ReduceAdd(squares) / static_cast<float>(row.hidden);
  const float inverse = 1.0F / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + row.epsilon)));
  const __m512 scale = _mm512_set1_ps(inverse);
  for (int64_t i = 0; i < row.hidden; i += 16) {
    const __mmask16 mask = FirstLanes(row.hidden - i);
    const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row.x + i), scale);
    const __m512 weight = _mm512_maskz_loadu_ps(mask, row.weight + i);
    _mm512_mask_storeu_ps(row.y + i, mask, _mm512_mul_ps(x, weight));
  }
}

}  // namespace nibble::kernels::avx512vnni
