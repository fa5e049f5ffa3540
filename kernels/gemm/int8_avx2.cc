// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W8A8 with vpmaddubsw, whose 16-bit sums of two products saturate: the weights enter with their
// magnitude, at most 128, and the activations take their sign, so that two products stay within
// 2 * 128 * 127 = 32512.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/integer_avx2.h"

namespace nibble::kernels::avx2 {
namespace {

// As much of a panel as stays in the first-level cache while the tiles pass.
constexpr int64_t kDepth = 512;

struct Tiles {
  const Int8Block& block;
  int64_t begin;
  int64_t length;
  int32_t* sums;  // [rows, kPanel]

  template <int kRows>
  inline void Run(int64_t row) const {
    const int8_t* a = block.rows.a + row * block.rows.k + begin * kRows;
    const uint8_t* weights = block.weights + begin / 4 * kStepBytes;
    const int64_t ahead = row == 0 ? kAheadBytes : 0;
    int32_t* at = sums + row * kPanel;
    __m256i acc[kRows][kVectors];
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[r][v] = LoadInts(at + r * kPanel + v * kLanes);
    }
    for (int64_t k = 0; k < length; k += 4) {
      __m256i w[kVectors];
      __m256i magnitude[kVectors];
      Prefetch(weights + ahead);
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        w[v] = LoadInts(weights + v * 32);
        magnitude[v] = _mm256_abs_epi8(w[v]);
      }
      weights += kStepBytes;
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = Broadcast4(a + r * 4);
        NIBBLE_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          const __m256i signed_x = _mm256_sign_epi8(x, w[v]);
          acc[r][v] = AddPairs(acc[r][v], _mm256_maddubs_epi16(magnitude[v], signed_x));
        }
      }
      a += kRows * 4;
    }
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) StoreInts(at + r * kPanel + v * kLanes, acc[r][v]);
    }
  }
};

}  // namespace

void Int8(const Int8Block& block) {
  const RowBlock& rows = block.rows;
  alignas(64) int32_t sums[kMaxBlockRows * kPanel];
  for (int64_t i = 0; i < rows.rows * kPanel; i += kLanes) {
    StoreInts(sums + i, _mm256_setzero_si256());
  }
  const int64_t depth = rows.rows <= rows.tile_rows ? rows.k : kDepth;
  for (int64_t begin = 0; begin < rows.k; begin += depth) {
    const int64_t length = rows.k - begin < depth ? rows.k - begin : depth;
    ForTiles(rows, Tiles{block, begin, length, sums});
  }
  for (int64_t row = 0; row < rows.rows; ++row) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m256i sum = LoadInts(sums + row * kPanel + v * kLanes);
      Store(rows, row, v, ScaleSum(rows, block.channel, row, v, sum));
    }
  }
}

}  // namespace nibble::kernels::avx2
