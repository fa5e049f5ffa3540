// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx512.h"
#include "kernels/moe/route_row.h"

namespace nibble::kernels::avx512vnni {
namespace {

constexpr int32_t kTaken = INT32_MIN;  // below the key of every logit

// Writes integers that are ordered as the logits are, and equal where those are equal; NaN as -inf.
// Returns whether there is a NaN.
inline bool MakeKeys(const RouteRow& row) {
  __mmask16 any_nan = 0;
  for (int64_t e = 0; e < row.num_experts; e += 16) {
    const __mmask16 mask = FirstLanes(row.num_experts - e);
    // + 0: -0 becomes 0.
    const __m512 x =
        _mm512_add_ps(_mm512_maskz_loadu_ps(mask, row.logits + e), _mm512_setzero_ps());
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    any_nan = static_cast<__mmask16>(any_nan | nan);
    const __m512i bits = _mm512_mask_blend_epi32(nan, _mm512_castps_si512(x),
                                                 _mm512_set1_epi32(static_cast<int>(0xff800000U)));
    // A float is sign and magnitude: negative ones have all other bits turned.
    const __m512i key = _mm512_xor_si512(bits, _mm512_srli_epi32(_mm512_srai_epi32(bits, 31), 1));
    _mm512_store_si512(row.keys + e, _mm512_mask_mov_epi32(_mm512_set1_epi32(kTaken), mask, key));
  }
  return any_nan != 0;
}

// The first expert with the largest key; its key becomes kTaken.
inline int32_t TakeBest(const RouteRow& row) {
  __m512i max = _mm512_load_si512(row.keys);
  for (int64_t e = 16; e < row.num_experts; e += 16) {
    max = _mm512_max_epi32(max, _mm512_load_si512(row.keys + e));
  }
  const __m512i best = _mm512_set1_epi32(_mm512_reduce_max_epi32(max));
  for (int64_t e = 0;; e += 16) {
    const __m512i keys = _mm512_load_si512(row.keys + e);
    const uint32_t equal = _mm512_cmpeq_epi32_mask(keys, best);
    if (equal == 0) continue;
    const auto first = static_cast<__mmask16>(equal & -equal);
    _mm512_store_si512(row.keys + e, _mm512_mask_mov_epi32(keys, first, _mm512_set1_epi32(kTaken)));
    return static_cast<int32_t>(e) + __builtin_ctz(equal);
  }
}

// exp(x[0..16) - max); lanes at and after `count` are 0.
inline __m512 Weigh(const float* x, int64_t count, __m512 max) {
  const __mmask16 mask = FirstLanes(count);
  return _mm512_maskz_mov_ps(mask, Exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x), max)));
}

}  // namespace

void RouteToken(const RouteRow& row) {
  const int64_t k = row.num_experts_per_tok;
  const bool any_nan = MakeKeys(row);
  for (int64_t j = 0; j < k; ++j) {
    row.expert_ids[j] = TakeBest(row);
    row.weights[j] = row.logits[row.expert_ids[j]];
  }
  const float max = row.weights[0];
  if (any_nan || max - max != 0.0F) {  // or infinite
    for (int64_t j = 0; j < k; ++j) row.weights[j] = __builtin_nanf("");
    return;
  }
  const __m512 max_lanes = _mm512_set1_ps(max);
  for (int64_t j = 0; j < k; j += 16) {
    _mm512_mask_storeu_ps(row.weights + j, FirstLanes(k - j),
                          Weigh(row.weights + j, k - j, max_lanes));
  }
  float sum = 0.0F;
  if (row.renormalize) {
    for (int64_t j = 0; j < k; ++j) sum += row.weights[j];
  } else {
    __m512 sums = _mm512_setzero_ps();
    for (int64_t e = 0; e < row.num_experts; e += 16) {
      sums = _mm512_add_ps(sums, Weigh(row.logits + e, row.num_experts - e, max_lanes));
    }
    sum = ReduceAdd(sums);
  }
  for (int64_t j = 0; j < k; j += 16) {
    const __mmask16 mask = FirstLanes(k - j);
    const __m512 weights = _mm512_maskz_loadu_ps(mask, row.weights + j);
    _mm512_mask_storeu_ps(row.weights + j, mask, _mm512_div_ps(weights, _mm512_set1_ps(sum)));
  }
}

}  // namespace nibble::kernels::avx512vnni
