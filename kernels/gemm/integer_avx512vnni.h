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
  static_assert(kMaxTileRows == 12, "one case for each height of a tile");
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

// sums += a stretch of k of one panel times every row. Weights are bytes [k / 4, kPanel, 4], from
// `begin` on. With kFetch the first tile asks for the weights that follow in memory.
template <bool kFetch>
struct ByteTiles {
  const RowBlock& rows;
  const uint8_t* weights;
  int64_t begin;
  int64_t length;
  int32_t* sums;  // [rows, kPanel]

  template <int kRows>
  inline void Run(int64_t row) const {
    // Few rows alone would wait for the latency of their accumulators: two chains per sum.
    constexpr int kChains = kRows <= 4 ? 2 : 1;
    const int8_t* a = rows.a + row * rows.k + begin * kRows;
    const uint8_t* w = weights;
    // Later tiles fetch what they load: a loop of their own without it was no faster.
    const int64_t ahead = row == 0 ? kAheadBytes : 0;
    Accumulators<kRows> acc[kChains];
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc[0].at[r][v] = _mm512_load_si512(sums + (row + r) * kPanel + v * kLanes);
        if (kChains == 2) acc[kChains - 1].at[r][v] = _mm512_setzero_si512();
      }
    }
    int64_t k = 0;
    for (; k + 4 * kChains <= length; k += 4 * kChains) {
      NIBBLE_UNROLL
      for (int c = 0; c < kChains; ++c) {
        Step<kRows>(w, ahead, a, &acc[c]);
        w += kStepBytes;
        a += kRows * 4;
      }
    }
    if (k < length) Step<kRows>(w, ahead, a, &acc[0]);
    NIBBLE_UNROLL
    for (int c = 0; c < kChains; ++c) acc[c].Pin();
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        __m512i sum = acc[0].at[r][v];
        if (kChains == 2) sum = _mm512_add_epi32(sum, acc[kChains - 1].at[r][v]);
        _mm512_store_si512(sums + (row + r) * kPanel + v * kLanes, sum);
      }
    }
  }

  template <int kRows>
  static inline void Step(const uint8_t* weights, int64_t ahead, const int8_t* a,
                          Accumulators<kRows>* acc) {
    __m512i w[kVectors];
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      w[v] = _mm512_loadu_si512(weights + v * 64);
      if constexpr (kFetch) Prefetch(weights + ahead + v * 64);
    }
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = Broadcast4(a + r * 4);
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc->at[r][v] = _mm512_dpbusd_epi32(acc->at[r][v], w[v], x);
      }
    }
  }
};

// Where sums of products with bytes w + 128 start: -128 * sum of the activations.
inline void StartByteSums(const RowBlock& rows, int32_t* sums) {
  for (int64_t row = 0; row < rows.rows; ++row) {
    const __m512i start = _mm512_slli_epi32(_mm512_set1_epi32(-rows.a_sums[row]), 7);
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      _mm512_store_si512(sums + row * kPanel + v * kLanes, start);
    }
  }
}

// d = float(sum) * (s_a * c[n]) + bias
inline void FinishSums(const RowBlock& rows, const float* channel, const int32_t* sums) {
  for (int64_t row = 0; row < rows.rows; ++row) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i sum = _mm512_load_si512(sums + row * kPanel + v * kLanes);
      Store(rows, row, v, ScaleSum(rows, channel, row, v, sum));
    }
  }
}

}  // namespace
}  // namespace nibble::kernels::avx512vnni
