// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W8A8 with 8-bit tiles, and the tile registers' configuration.

#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/amx_kernels.h"
#include "kernels/gemm/amx_multiply.h"

namespace nibble::kernels::amx {

void BeginTiles() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = kAmxTileRows;
    config.row_bytes[tile] = kAmxRowBytes;
  }
  ConfigureTiles(config);
}
void EndTiles() { ReleaseTiles(); }

void Int8(const AmxBlock& block) {
  Multiply(block, StoredForm<UnsignedWeights>{block});
  ForSums(block, [&](int64_t row, int64_t column, __m512i sum) {
    // The weight bytes are 128 too large.
    const __m512i excess = _mm512_slli_epi32(_mm512_set1_epi32(block.a_sums[row]), 7);
    StoreScaled(block, row, column, _mm512_sub_epi32(sum, excess));
  });
}

}  // namespace nibble::kernels::amx
