// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the AVX2 kernels of integer weights share. Included by *_avx2.cc only, in an unnamed
// namespace: no symbol compiled for AVX2 may serve other CPUs.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/device/math_avx2.h"
#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels::avx2 {
namespace {

constexpr int kLanes = 8;
constexpr int kVectors = 2;  // a panel is 16 output channels
constexpr int kPanel = kVectors * kLanes;
constexpr int kStepBytes = kPanel * 4;  // packed codes of 8 k; bytes of 4 k
// How far ahead of its use a weight is fetched (integer_avx512vnni.h).
constexpr int64_t kAheadBytes = 8192;

// The next four activations of a row, in every 32-bit lane.
inline __m256i Broadcast4(const int8_t* a) {
  int32_t four = 0;
  __builtin_memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

inline __m256i LoadInts(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}
inline void StoreInts(int32_t* at, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value);
}
inline __m256i LoadBytes(const uint8_t* bytes) {  // 8 bytes, one per lane
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
}
inline void Prefetch(const void* at) { _mm_prefetch(at, _MM_HINT_T0); }

// 32-bit sums of the pairs of 16-bit lanes, added to `sum`.
inline __m256i AddPairs(__m256i sum, __m256i sums16) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(sums16, _mm256_set1_epi16(1)));
}

// d = value + bias for the columns that exist.
inline void Store(const RowBlock& rows, int64_t row, int v, __m256 value) {
  const int64_t left = rows.columns - v * kLanes;
  if (left <= 0) return;
  const __m256i mask = FirstLanes(left);
  if (rows.bias != nullptr) {
    value = _mm256_add_ps(value, _mm256_maskload_ps(rows.bias + v * kLanes, mask));
  }
  _mm256_maskstore_ps(rows.d + row * rows.d_stride + v * kLanes, mask, value);
}

// float(acc) * (s_a * c[n])
inline __m256 ScaleSum(const RowBlock& rows, const float* channel, int64_t row, int v,
                       __m256i acc) {
  const __m256 scale =
      _mm256_mul_ps(_mm256_set1_ps(rows.a_scales[row]), _mm256_loadu_ps(channel + v * kLanes));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(acc), scale);
}

// Calls body.Run<rows>(first row of the tile) for every tile.
template <typename Body>
inline void ForTiles(const RowBlock& rows, const Body& body) {
  static_assert(kMaxTileRows == 3, "one case for each height of a tile");
  for (int64_t row = 0; row < rows.rows; row += rows.tile_rows) {
    const int64_t left = rows.rows - row;
    switch (left < rows.tile_rows ? left : rows.tile_rows) {
      case 1:
        body.template Run<1>(row);
        break;
      case 2:
        body.template Run<2>(row);
        break;
      default:
        body.template Run<3>(row);
        break;
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::avx2
