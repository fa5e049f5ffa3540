// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "bench/roofline.h"
#include "kernels/gemm/gemm_kernels.h"

namespace nibble::bench::avx512vnni {

int64_t ReadAll(const uint8_t* data, int64_t size) {
  __m512i sums[4] = {};
  for (int64_t i = 0; i + 256 <= size; i += 256) {
    NIBBLE_UNROLL
    for (int j = 0; j < 4; ++j) {
      sums[j] = _mm512_xor_si512(sums[j], _mm512_loadu_si512(data + i + j * 64));
    }
  }
  const __m512i sum =
      _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
  return _mm512_reduce_add_epi64(sum);
}

// Accumulators start apart: the compiler keeps one for all that are equal.
int64_t FloatLoop(int64_t iterations) {
  __m512 acc[12];
  NIBBLE_UNROLL
  for (int j = 0; j < 12; ++j) acc[j] = _mm512_set1_ps(static_cast<float>(j));
  const __m512 x = _mm512_set1_ps(0.5F);
  for (int64_t i = 0; i < iterations; ++i) {
    NIBBLE_UNROLL
    for (int j = 0; j < 12; ++j) acc[j] = _mm512_fmadd_ps(acc[j], x, x);
    __asm__ volatile("" ::: "memory");
  }
  __m512 sum = acc[0];
  NIBBLE_UNROLL
  for (int j = 1; j < 12; ++j) sum = _mm512_add_ps(sum, acc[j]);
  return _mm512_cvtss_f32(sum) > 0.0F ? 1 : 0;
}

int64_t Int8Loop(int64_t iterations) {
  __m512i acc[12];
  NIBBLE_UNROLL
  for (int j = 0; j < 12; ++j) acc[j] = _mm512_set1_epi32(j);
  const __m512i x = _mm512_set1_epi8(3);
  for (int64_t i = 0; i < iterations; ++i) {
    NIBBLE_UNROLL
    for (int j = 0; j < 12; ++j) acc[j] = _mm512_dpbusd_epi32(acc[j], x, x);
    __asm__ volatile("" ::: "memory");
  }
  __m512i sum = acc[0];
  NIBBLE_UNROLL
  for (int j = 1; j < 12; ++j) sum = _mm512_add_epi32(sum, acc[j]);
  return _mm512_reduce_add_epi32(sum);
}

}  // namespace nibble::bench::avx512vnni
