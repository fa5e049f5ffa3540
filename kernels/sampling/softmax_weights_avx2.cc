// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/sampling/softmax_weights_chunk.h"

namespace nibble::kernels::avx2 {
namespace {

// ExpNonPositive of exp.h, operation by operation.
inline __m256 Exp(__m256 x) {
  const __m256 lowest = _mm256_set1_ps(-87.0F);
  const __m256 round = _mm256_set1_ps(0x1.8p23F);
  const __m256 clamped = _mm256_max_ps(x, lowest);  // the second operand where x is NaN
  const __m256 shifted =
      _mm256_add_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(0x1.715476p+0F)), round);
  const __m256 n = _mm256_sub_ps(shifted, round);
  __m256 r = _mm256_sub_ps(clamped, _mm256_mul_ps(n, _mm256_set1_ps(0x1.63p-1F)));
  r = _mm256_sub_ps(r, _mm256_mul_ps(n, _mm256_set1_ps(-0x1.bd0106p-13F)));
  const float coefficients[] = {1.0F / 720.0F, 1.0F / 120.0F, 1.0F / 24.0F, 1.0F / 6.0F,
                                0.5F,          1.0F,          1.0F};
  __m256 poly = _mm256_set1_ps(1.0F / 5040.0F);
  for (const float c : coefficients) {
    poly = _mm256_add_ps(_mm256_mul_ps(poly, r), _mm256_set1_ps(c));
  }
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  const __m256 value = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(poly), exponent));
  return _mm256_and_ps(_mm256_cmp_ps(x, lowest, _CMP_GE_OQ), value);
}

inline __m256 Weigh(const WeightChunk& chunk, __m256 logits) {
  const __m256 exponent = _mm256_div_ps(_mm256_sub_ps(logits, _mm256_set1_ps(chunk.max_logit)),
                                        _mm256_set1_ps(chunk.temperature));
  const __m256 counts = _mm256_cmp_ps(exponent, _mm256_set1_ps(chunk.min_exponent), _CMP_GE_OQ);
  return _mm256_and_ps(counts, Exp(exponent));
}

}  // namespace

double WeighChunk(const WeightChunk& chunk, float* weights) {
  __m256d low = _mm256_setzero_pd();   // lanes 0..3
  __m256d high = _mm256_setzero_pd();  // lanes 4..7
  int64_t i = 0;
  for (; i + 8 <= chunk.count; i += 8) {
    const __m256 weight = Weigh(chunk, _mm256_loadu_ps(chunk.logits + i));
    if (weights != nullptr) _mm256_storeu_ps(weights + i, weight);
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(weight)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(weight, 1)));
  }
  double rest = 0.0;
  if (i < chunk.count) {
    alignas(32) float tail[8] = {};
    for (int64_t j = i; j < chunk.count; ++j) tail[j - i] = chunk.logits[j];
    _mm256_store_ps(tail, Weigh(chunk, _mm256_load_ps(tail)));
    for (int64_t j = i; j < chunk.count; ++j) {
      if (weights != nullptr) weights[j] = tail[j - i];
      rest += static_cast<double>(tail[j - i]);
    }
  }
  alignas(32) double lanes[8];
  _mm256_store_pd(lanes, low);
  _mm256_store_pd(lanes + 4, high);
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum + rest;
}

}  // namespace nibble::kernels::avx2
