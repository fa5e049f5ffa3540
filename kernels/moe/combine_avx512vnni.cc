// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx512.h"
#include "kernels/moe/combine_row.h"

namespace nibble::kernels::avx512vnni {

void CombineColumns(const CombineRow& row) {
  int64_t c = 0;
  for (; c + 64 <= row.columns; c += 64) {
    __m512 sums[4];
    const __m512 first = _mm512_set1_ps(row.weights[0]);
    for (int i = 0; i < 4; ++i) {
      const __m512 y = _mm512_loadu_ps(row.y[0] + c + 16 * i);
      sums[i] = row.add ? _mm512_fmadd_ps(first, y, _mm512_loadu_ps(row.out + c + 16 * i))
                        : _mm512_mul_ps(first, y);
    }
    for (int j = 1; j < row.num_rows; ++j) {
      const __m512 weight = _mm512_set1_ps(row.weights[j]);
      for (int i = 0; i < 4; ++i) {
        sums[i] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(row.y[j] + c + 16 * i), sums[i]);
      }
    }
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(row.out + c + 16 * i, sums[i]);
  }
  for (; c < row.columns; c += 16) {
    const __mmask16 mask = FirstLanes(row.columns - c);
    const __m512 first = _mm512_set1_ps(row.weights[0]);
    const __m512 y = _mm512_maskz_loadu_ps(mask, row.y[0] + c);
    __m512 sum = row.add ? _mm512_fmadd_ps(first, y, _mm512_maskz_loadu_ps(mask, row.out + c))
                         : _mm512_mul_ps(first, y);
    for (int j = 1; j < row.num_rows; ++j) {
      sum = _mm512_fmadd_ps(_mm512_set1_ps(row.weights[j]),
                            _mm512_maskz_loadu_ps(mask, row.y[j] + c), sum);
    }
    _mm512_mask_storeu_ps(row.out + c, mask, sum);
  }
}

}  // namespace nibble::kernels::avx512vnni
