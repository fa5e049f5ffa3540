// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the AVX-512 VNNI kernels of integer weights share. vpdpbusd: 32-bit lane n gains the
// products of four unsigned bytes (weights of output channel n, four k) with four signed bytes
// (activations of the same k, the same in every lane). Wrapping arithmetic throughout: whole sums
// are proven to fit when packing. Included by *_avx512vnni.cc only, in an unnamed namespace: no
// symbol compiled for AVX-512 may serve other CPUs.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/device/math_avx512.h"
#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels::avx512vnni {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = 2;  // a panel is 32 output channels
constexpr int kPanel = kVectors * kLanes;
constexpr int kStepBytes = kPanel * 4;  // packed codes of 8 k; bytes of 4 k
// 12 rows * 2 vectors = 24 accumulators; weights, masks and activations take 5 more of the 32
// registers.
constexpr int kMaxTileRows = 12;
// How far ahead of its use a weight is fetched. The hardware's prefetchers follow the stream of a
// panel, but not fast enough for a kernel that computes between its loads (README.md has figures).
constexpr int64_t kAheadBytes = 8192;

// The next four activations of a row, in every lane.
inline __m512i Broadcast4(const int8_t* a) {
  int32_t four = 0;
  __builtin_memcpy(&four, a, 4);
  return _mm512_set1_epi32(four);
}

inline __m512i LoadBytes(const uint8_t* bytes) {  // 16 bytes, one per lane
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

inline void Prefetch(const void* at) { _mm_prefetch(at, _MM_HINT_T0); }

// Accumulators of a tile: [row][vector].
template <int kRows>
struct Accumulators {
  __m512i at[kRows][kVectors];
  // Keeps them in registers up to here: left alone, g++ 12 stores them in every round of the loop
  // before when their next use is another loop (measured: half the speed).
  inline void Pin() {
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) __asm__("" : "+v"(at[r][v]));
    }
  }
};

// d = value + bias for the columns that exist.
inline void Store(const RowBlock& rows, int64_t row, int v, __m512 value) {
  const __mmask16 mask = FirstLanes(rows.columns - v * kLanes);
  if (mask == 0) return;
  if (rows.bias != nullptr) {
    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, rows.bias + v * kLanes));
  }
  _mm512_mask_storeu_ps(rows.d + row * rows.d_stride + v * kLanes, mask, value);
}

// float(acc) * (s_a * c[n])
inline __m512 ScaleSum(const RowBlock& rows, const float* channel, int64_t row, int v,
                       __m512i acc) {
  const __m512 scale =
      _mm512_mul_ps(_mm512_set1_ps(rows.a_scales[row]), _mm512_loadu_ps(channel + v * kLanes));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(acc), scale);
}

// Calls body.Run<rows>(first row of the tile) for every tile.
template <typename Body>
inline void ForTiles(const RowBlock& rows, const Body& body) {
  for (int64_t row = 0; row < rows.rows; row += rows.tile_rows) {
    const int64_t left = rows.rows - row;
    switch (left < rows.tile_rows ? left : rows.tile_rows) {
      case 1:
        body.template Run<1>(row);
        break;
      case 2:
        body.template Run<2>(row);
        break;
      case 3:
        body.template Run<3>(row);
        break;
      case 4:
        body.template Run<4>(row);
        break;
      case 5:
        body.template Run<5>(row);
        break;
      case 6:
        body.template Run<6>(row);
        break;
      case 7:
        body.template Run<7>(row);
        break;
      case 8:
        body.template Run<8>(row);
        break;
      case 9:
        body.template Run<9>(row);
        break;
      case 10:
        body.template Run<10>(row);
        break;
      case 11:
        body.template Run<11>(row);
        break;
      default:
        body.template Run<12>(row);
        break;
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::avx512vnni
