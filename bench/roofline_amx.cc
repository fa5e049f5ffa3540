// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/roofline_amx.h"

#include <cstdint>

#include "kernels/device/amx_tile.h"

namespace nibble::bench::amx {
namespace {

using kernels::amx::ConfigureTiles;
using kernels::amx::DotBf16;
using kernels::amx::DotSigned;
using kernels::amx::LoadTile;
using kernels::amx::ReleaseTiles;
using kernels::amx::StoreTile;
using kernels::amx::TileConfig;

// Tiles 0..3 are sums, 4 and 5 activations, 6 and 7 weights.
void ConfigureWholeTiles() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = 16;
    config.row_bytes[tile] = 64;
  }
  ConfigureTiles(config);
}

int64_t Finish() {
  alignas(64) int32_t sums[4][16 * 16];
  StoreTile<0>(sums[0], 64);
  StoreTile<1>(sums[1], 64);
  StoreTile<2>(sums[2], 64);
  StoreTile<3>(sums[3], 64);
  ReleaseTiles();
  return int64_t{sums[0][0]} + sums[1][1] + sums[2][2] + sums[3][3];
}

}  // namespace

int64_t Int8Loop(int64_t iterations) {
  ConfigureWholeTiles();
  for (int64_t i = 0; i < iterations; ++i) {
    DotSigned<0, 4, 6>();
    DotSigned<1, 4, 7>();
    DotSigned<2, 5, 6>();
    DotSigned<3, 5, 7>();
  }
  return Finish();
}

int64_t Bf16Loop(int64_t iterations) {
  ConfigureWholeTiles();
  for (int64_t i = 0; i < iterations; ++i) {
    DotBf16<0, 4, 6>();
    DotBf16<1, 4, 7>();
    DotBf16<2, 5, 6>();
    DotBf16<3, 5, 7>();
  }
  return Finish();
}

int64_t Int8LoadLoop(const uint8_t* buffer, int64_t iterations) {
  ConfigureWholeTiles();
  for (int64_t i = 0; i < iterations; ++i) {
    const uint8_t* at = buffer + i * 4096 % kTileBufferBytes;
    LoadTile<4>(at, 64);
    LoadTile<6>(at + 2048, 128);
    DotSigned<0, 4, 6>();
    LoadTile<7>(at + 2048 + 64, 128);
    DotSigned<1, 4, 7>();
    LoadTile<5>(at + 1024, 64);
    DotSigned<2, 5, 6>();
    DotSigned<3, 5, 7>();
  }
  return Finish();
}

}  // namespace nibble::bench::amx
