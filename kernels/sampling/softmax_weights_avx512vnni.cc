// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/sampling/softmax_weights_chunk.h"

namespace nibble::kernels::avx512vnni {
namespace {

// ExpNonPositive of exp.h, operation by operation.
inline __m512 Exp(__m512 x) {
  const __m512 lowest = _mm512_set1_ps(-87.0F);
  const __m512 round = _mm512_set1_ps(0x1.8p23F);
  const __m512 clamped = _mm512_max_ps(x, lowest);  // the second operand where x is NaN
  const __m512 shifted =
      _mm512_add_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(0x1.715476p+0F)), round);
  const __m512 n = _mm512_sub_ps(shifted, round);
  __m512 r = _mm512_sub_ps(clamped, _mm512_mul_ps(n, _mm512_set1_ps(0x1.63p-1F)));
  r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(-0x1.bd0106p-13F)));
  const float coefficients[] = {1.0F / 720.0F, 1.0F / 120.0F, 1.0F / 24.0F, 1.0F / 6.0F,
                                0.5F,          1.0F,          1.0F};
  __m512 poly = _mm512_set1_ps(1.0F / 5040.0F);
  for (const float c : coefficients) {
    poly = _mm512_add_ps(_mm512_mul_ps(poly, r), _mm512_set1_ps(c));
  }
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  const __m512 value = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(poly), exponent));
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, lowest, _CMP_GE_OQ), value);
}

}  // namespace

double WeighChunk(const WeightChunk& chunk, float* weights) {
  const __m512 max_logit = _mm512_set1_ps(chunk.max_logit);
  const __m512 temperature = _mm512_set1_ps(chunk.temperature);
  const __m512 min_exponent = _mm512_set1_ps(chunk.min_exponent);
  __m512d lanes = _mm512_setzero_pd();
  double rest = 0.0;
  for (int64_t i = 0; i < chunk.count; i += 16) {
    const int64_t left = chunk.count - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffU : (1U << left) - 1U);
    const __m512 logits = _mm512_maskz_loadu_ps(mask, chunk.logits + i);
    const __m512 exponent = _mm512_div_ps(_mm512_sub_ps(logits, max_logit), temperature);
    const __mmask16 counts = _mm512_mask_cmp_ps_mask(mask, exponent, min_exponent, _CMP_GE_OQ);
    const __m512 weight = _mm512_maskz_mov_ps(counts, Exp(exponent));
    if (weights != nullptr) _mm512_mask_storeu_ps(weights + i, mask, weight);
    // A half that the chunk does not fill is summed one by one, after the lanes.
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(weight));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(weight, 1));
    if (left >= 16) {
      lanes = _mm512_add_pd(_mm512_add_pd(lanes, low), high);
      continue;
    }
    alignas(64) double tail[16];
    _mm512_store_pd(tail, low);
    _mm512_store_pd(tail + 8, high);
    int64_t next = 0;
    if (left >= 8) {
      lanes = _mm512_add_pd(lanes, low);
      next = 8;
    }
    for (; next < left; ++next) rest += tail[next];
  }
  alignas(64) double sums[8];
  _mm512_store_pd(sums, lanes);
  double sum = 0.0;
  for (const double lane : sums) sum += lane;
  return sum + rest;
}

}  // namespace nibble::kernels::avx512vnni
