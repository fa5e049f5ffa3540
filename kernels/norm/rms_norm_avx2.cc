// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx2.h"
#include "kernels/norm/rms_norm_row.h"

namespace nibble::kernels::avx2 {
namespace {

// x[0..8) + delta[0..8), written back to x when there is a delta; lanes at and after `count` are 0.
inline __m256 AddDelta(const RmsNormRow& row, int64_t i) {
  const int64_t count = row.hidden - i;
  const __m256i mask = FirstLanes(count);
  const __m256 x = count >= 8 ? _mm256_loadu_ps(row.x + i) : _mm256_maskload_ps(row.x + i, mask);
  if (row.delta == nullptr) return x;
  const __m256 sum = _mm256_add_ps(x, _mm256_maskload_ps(row.delta + i, mask));
  _mm256_maskstore_ps(row.x + i, mask, sum);
  return sum;
}

}  // namespace

void NormalizeRow(const RmsNormRow& row) {
  // Lanes i mod 16 in two registers, so that the sum is the AVX-512 variant's to the bit.
  __m256 squares0 = _mm256_setzero_ps();
  __m256 squares1 = _mm256_setzero_ps();
  for (int64_t i = 0; i < row.hidden; i += 16) {
    const __m256 x0 = AddDelta(row, i);
    squares0 = _mm256_fmadd_ps(x0, x0, squares0);
    if (i + 8 >= row.hidden) break;
    const __m256 x1 = AddDelta(row, i + 8);
    squares1 = _mm256_fmadd_ps(x1, x1, squares1);
  }
  const float mean = ReduceAdd(_mm256_add_ps(squares0, squares1)) / static_cast<float>(row.hidden);
  const float inverse = 1.0F / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + row.epsilon)));
  const __m256 scale = _mm256_set1_ps(inverse);
  int64_t i = 0;
  for (; i + 8 <= row.hidden; i += 8) {
    const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(row.x + i), scale);
    _mm256_storeu_ps(row.y + i, _mm256_mul_ps(x, _mm256_loadu_ps(row.weight + i)));
  }
  for (; i < row.hidden; ++i) row.y[i] = row.x[i] * inverse * row.weight[i];
}

}  // namespace nibble::kernels::avx2
