// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The tile unit of AMX in plain C++: one thread's tile registers. After the operation sections of
// Intel's Software Developer's Manual, volume 2.
#pragma once

#include <cstdint>

#include "kernels/device/amx_tile.h"

namespace nibble::kernels::amx {

class TileModel {
 public:
  static constexpr int kTiles = 8;
  static constexpr int kMaxRows = 16;
  static constexpr int kMaxRowBytes = 64;

  // Each returns null, or why the processor would raise an exception; nothing changes then.
  const char* Configure(const TileConfig& config);
  const char* Release();
  const char* Zero(int tile);
  const char* Load(int tile, const void* base, int64_t stride);
  const char* Store(int tile, void* base, int64_t stride) const;
  // Signed 8-bit dot products into 32-bit integers that wrap.
  const char* DotSigned(int c, int a, int b);
  const char* DotBf16(int c, int a, int b);

 private:
  const char* CheckTile(int tile) const;
  const char* CheckDot(int c, int a, int b) const;

  bool configured_ = false;
  int rows_[kTiles] = {};
  int row_bytes_[kTiles] = {};
  // Zero beyond each tile's shape.
  alignas(64) uint8_t data_[kTiles][kMaxRows][kMaxRowBytes] = {};
};

}  // namespace nibble::kernels::amx
