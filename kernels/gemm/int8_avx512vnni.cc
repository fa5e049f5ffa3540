// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W8A8 with vpdpbusd: weights are stored as w + 128, and 128 * sum of the activations is
// subtracted.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/integer_avx512vnni.h"

namespace nibble::kernels::avx512vnni {
namespace {

// As much of a panel as stays in the first-level cache while the tiles pass.
constexpr int64_t kDepth = 256;

struct Tiles {
  const Int8Block& block;
  int64_t begin;
  int64_t length;
  int32_t* sums;  // [rows, kPanel]

  template <int kRows>
  inline void Run(int64_t row) const {
    // Few rows alone would wait for the latency of their accumulators: two chains per sum.
    constexpr int kChains = kRows <= 4 ? 2 : 1;
    const int8_t* a = block.rows.a + row * block.rows.k + begin * kRows;
    const uint8_t* weights = block.weights + begin / 4 * kStepBytes;
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
        Step<kRows>(weights, ahead, a, &acc[c]);
        weights += kStepBytes;
        a += kRows * 4;
      }
    }
    if (k < length) Step<kRows>(weights, ahead, a, &acc[0]);
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
      Prefetch(weights + ahead + v * 64);
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

}  // namespace

void Int8(const Int8Block& block) {
  const RowBlock& rows = block.rows;
  alignas(64) int32_t sums[kMaxBlockRows * kPanel];
  for (int64_t row = 0; row < rows.rows; ++row) {
    const __m512i start = _mm512_slli_epi32(_mm512_set1_epi32(-rows.a_sums[row]), 7);
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      _mm512_store_si512(sums + row * kPanel + v * kLanes, start);
    }
  }
  const int64_t depth = rows.rows <= rows.tile_rows ? rows.k : kDepth;
  for (int64_t begin = 0; begin < rows.k; begin += depth) {
    const int64_t length = rows.k - begin < depth ? rows.k - begin : depth;
    ForTiles(rows, Tiles{block, begin, length, sums});
  }
  for (int64_t row = 0; row < rows.rows; ++row) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i sum = _mm512_load_si512(sums + row * kPanel + v * kLanes);
      Store(rows, row, v, ScaleSum(rows, block.channel, row, v, sum));
    }
  }
}

}  // namespace nibble::kernels::avx512vnni
