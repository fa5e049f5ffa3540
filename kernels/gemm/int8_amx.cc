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
  Multiply(block, StoredForm<SignedBytes>{block});
  ForSums(block,
          [&](int64_t row, int64_t column, __m512i sum) { StoreScaled(block, row, column, sum); });
}

}  // namespace nibble::kernels::amx
