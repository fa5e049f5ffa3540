// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "bench/roofline.h"
#include "kernels/gemm/gemm_kernels.h"

namespace nibble::bench::avx2 {

int64_t ReadAll(const uint8_t* data, int64_t size) {
  __m256i sums[4] = {};
  for (int64_t i = 0; i + 128 <= size; i += 128) {
    NIBBLE_UNROLL
    for (int j = 0; j < 4; ++j) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i) + j);
      sums[j] = _mm256_xor_si256(sums[j], v);
    }
  }
  const __m256i sum =
      _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  return _mm256_extract_epi64(sum, 0) ^ _mm256_extract_epi64(sum, 3);
}

// Accumulators start apart: the compiler keeps one for all that are equal.
int64_t FloatLoop(int64_t iterations) {
  __m256 acc[12];
  NIBBLE_UNROLL
  for (int j = 0; j < 12; ++j) acc[j] = _mm256_set1_ps(static_cast<float>(j));
  const __m256 x = _mm256_set1_ps(0.5F);
  for (int64_t i = 0; i < iterations; ++i) {
    NIBBLE_UNROLL
    for (int j = 0; j < 12; ++j) acc[j] = _mm256_fmadd_ps(acc[j], x, x);
    __asm__ volatile("" ::: "memory");
  }
  __m256 sum = acc[0];
  NIBBLE_UNROLL
  for (int j = 1; j < 12; ++j) sum = _mm256_add_ps(sum, acc[j]);
  return _mm256_cvtss_f32(sum) > 0.0F ? 1 : 0;
}

int64_t Int8Loop(int64_t iterations) {
  __m256i acc[12];
  NIBBLE_UNROLL
  for (int j = 0; j < 12; ++j) acc[j] = _mm256_setzero_si256();
  __m256i x = _mm256_set1_epi8(3);
  const __m256i y = _mm256_set1_epi8(5);
  for (int64_t i = 0; i < iterations; ++i) {
    // The compiler must not hoist the product.
    NIBBLE_UNROLL
    for (int j = 0; j < 12; ++j) {
      __asm__("" : "+x"(x));
      acc[j] = _mm256_add_epi16(acc[j], _mm256_maddubs_epi16(x, y));
    }
  }
  __m256i sum = acc[0];
  NIBBLE_UNROLL
  for (int j = 1; j < 12; ++j) sum = _mm256_add_epi32(sum, acc[j]);
  return _mm256_extract_epi32(sum, 0);
}

}  // namespace nibble::bench::avx2
