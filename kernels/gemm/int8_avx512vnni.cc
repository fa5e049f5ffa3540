// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W8A8 with vpdpbusd: weights are stored as w + 128, and 128 * sum of the activations is
// subtracted.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/integer_avx512vnni.h"

namespace nibble::kernels::avx512vnni {

void Int8(const Int8Block& block) {
  // As much of a panel as stays in the first-level cache while the tiles pass.
  constexpr int64_t kDepth = 256;
  const RowBlock& rows = block.rows;
  alignas(64) int32_t sums[kMaxBlockRows * kPanel];
  StartByteSums(rows, sums);
  const int64_t depth = rows.rows <= rows.tile_rows ? rows.k : kDepth;
  for (int64_t begin = 0; begin < rows.k; begin += depth) {
    const int64_t length = rows.k - begin < depth ? rows.k - begin : depth;
    ForTiles(rows,
             ByteTiles<true>{rows, block.weights + begin / 4 * kStepBytes, begin, length, sums});
  }
  FinishSums(rows, block.channel, sums);
}

}  // namespace nibble::kernels::avx512vnni
