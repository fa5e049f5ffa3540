// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx2.h"
#include "kernels/moe/route_row.h"

namespace nibble::kernels::avx2 {
namespace {

constexpr int32_t kTaken = INT32_MIN;  // below the key of every logit

inline __m256i LoadKeys(const int32_t* keys) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(keys));
}
inline void StoreKeys(int32_t* keys, __m256i value) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(keys), value);
}

// Writes integers that are ordered as the logits are, and equal where those are equal; NaN as -inf.
// Returns whether there is a NaN.
inline bool MakeKeys(const RouteRow& row) {
  __m256 any_nan = _mm256_setzero_ps();
  for (int64_t e = 0; e < row.num_experts; e += 8) {
    const __m256i mask = FirstLanes(row.num_experts - e);
    // + 0: -0 becomes 0.
    const __m256 x = _mm256_add_ps(_mm256_maskload_ps(row.logits + e, mask), _mm256_setzero_ps());
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    any_nan = _mm256_or_ps(any_nan, nan);
    const __m256i bits = _mm256_castps_si256(_mm256_blendv_ps(
        x, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xff800000U))), nan));
    // A float is sign and magnitude: negative ones have all other bits turned.
    const __m256i key = _mm256_xor_si256(bits, _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1));
    StoreKeys(row.keys + e, _mm256_blendv_epi8(_mm256_set1_epi32(kTaken), key, mask));
  }
  return _mm256_movemask_ps(any_nan) != 0;
}

inline int32_t ReduceMaxKey(__m256i keys) {
  __m128i max = _mm_max_epi32(_mm256_castsi256_si128(keys), _mm256_extracti128_si256(keys, 1));
  max = _mm_max_epi32(max, _mm_shuffle_epi32(max, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(max, _mm_shuffle_epi32(max, 0xb1)));
}

// The first expert with the largest key; its key becomes kTaken.
inline int32_t TakeBest(const RouteRow& row) {
  __m256i max = LoadKeys(row.keys);
  for (int64_t e = 8; e < row.num_experts; e += 8) {
    max = _mm256_max_epi32(max, LoadKeys(row.keys + e));
  }
  const __m256i best = _mm256_set1_epi32(ReduceMaxKey(max));
  for (int64_t e = 0;; e += 8) {
    const __m256i keys = LoadKeys(row.keys + e);
    const int equal = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(keys, best)));
    if (equal == 0) continue;
    const int lane = __builtin_ctz(static_cast<unsigned>(equal));
    const __m256i is_lane =
        _mm256_cmpeq_epi32(_mm256_set1_epi32(lane), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    StoreKeys(row.keys + e, _mm256_blendv_epi8(keys, _mm256_set1_epi32(kTaken), is_lane));
    return static_cast<int32_t>(e) + lane;
  }
}

// exp(x[0..8) - max); lanes at and after `count` are 0.
inline __m256 Weigh(const float* x, int64_t count, __m256 max) {
  const __m256i mask = FirstLanes(count);
  return _mm256_and_ps(_mm256_castsi256_ps(mask),
                       Exp(_mm256_sub_ps(_mm256_maskload_ps(x, mask), max)));
}

// Lanes e mod 16 in two registers, so that the sum is the AVX-512 variant's to the bit.
inline float SumOfAll(const RouteRow& row, __m256 max) {
  __m256 sums0 = _mm256_setzero_ps();
  __m256 sums1 = _mm256_setzero_ps();
  for (int64_t e = 0; e < row.num_experts; e += 16) {
    sums0 = _mm256_add_ps(sums0, Weigh(row.logits + e, row.num_experts - e, max));
    if (e + 8 >= row.num_experts) break;
    sums1 = _mm256_add_ps(sums1, Weigh(row.logits + e + 8, row.num_experts - e - 8, max));
  }
  return ReduceAdd(_mm256_add_ps(sums0, sums1));
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
  const __m256 max_lanes = _mm256_set1_ps(max);
  for (int64_t j = 0; j < k; j += 8) {
    _mm256_maskstore_ps(row.weights + j, FirstLanes(k - j),
                        Weigh(row.weights + j, k - j, max_lanes));
  }
  float sum = 0.0F;
  if (row.renormalize) {
    for (int64_t j = 0; j < k; ++j) sum += row.weights[j];
  } else {
    sum = SumOfAll(row, max_lanes);
  }
  for (int64_t j = 0; j < k; j += 8) {
    const __m256i mask = FirstLanes(k - j);
    const __m256 weights = _mm256_maskload_ps(row.weights + j, mask);
    _mm256_maskstore_ps(row.weights + j, mask, _mm256_div_ps(weights, _mm256_set1_ps(sum)));
  }
}

}  // namespace nibble::kernels::avx2
