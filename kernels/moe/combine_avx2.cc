// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx2.h"
#include "kernels/moe/combine_row.h"

namespace nibble::kernels::avx2 {

void CombineColumns(const CombineRow& row) {
  int64_t c = 0;
  for (; c + 32 <= row.columns; c += 32) {
    __m256 sums[4];
    const __m256 first = _mm256_set1_ps(row.weights[0]);
    for (int i = 0; i < 4; ++i) {
      const __m256 y = _mm256_loadu_ps(row.y[0] + c + 8 * i);
      sums[i] = row.add ? _mm256_fmadd_ps(first, y, _mm256_loadu_ps(row.out + c + 8 * i))
                        : _mm256_mul_ps(first, y);
    }
    for (int j = 1; j < row.num_rows; ++j) {
      const __m256 weight = _mm256_set1_ps(row.weights[j]);
      for (int i = 0; i < 4; ++i) {
        sums[i] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(row.y[j] + c + 8 * i), sums[i]);
      }
    }
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(row.out + c + 8 * i, sums[i]);
  }
  for (; c < row.columns; c += 8) {
    const __m256i mask = FirstLanes(row.columns - c);
    const __m256 first = _mm256_set1_ps(row.weights[0]);
    const __m256 y = _mm256_maskload_ps(row.y[0] + c, mask);
    __m256 sum = row.add ? _mm256_fmadd_ps(first, y, _mm256_maskload_ps(row.out + c, mask))
                         : _mm256_mul_ps(first, y);
    for (int j = 1; j < row.num_rows; ++j) {
      sum = _mm256_fmadd_ps(_mm256_set1_ps(row.weights[j]), _mm256_maskload_ps(row.y[j] + c, mask),
                            sum);
    }
    _mm256_maskstore_ps(row.out + c, mask, sum);
  }
}

}  // namespace nibble::kernels::avx2
