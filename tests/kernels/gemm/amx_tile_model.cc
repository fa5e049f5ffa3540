// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/kernels/gemm/amx_tile_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#define NIBBLE_UNCHECKED __attribute__((no_sanitize("address", "thread", "undefined")))

namespace nibble::kernels::amx {
namespace {

float FlushSubnormal(float value) {
  return std::abs(value) < std::numeric_limits<float>::min() ? std::copysign(0.0F, value) : value;
}

float FromBf16(const uint8_t* bytes) {
  uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof(bits));
  return FlushSubnormal(std::bit_cast<float>(static_cast<uint32_t>(bits) << 16));
}

}  // namespace

const char* TileModel::Configure(const TileConfig& config) {
  if (config.palette == 0) return Release();
  if (config.palette != 1) return "no such palette";
  if (config.start_row != 0) return "a start row, which only interrupted loads have";
  for (const uint8_t byte : config.reserved) {
    if (byte != 0) return "a reserved byte is not zero";
  }
  for (int tile = 0; tile < 16; ++tile) {
    const int rows = config.rows[tile];
    const int row_bytes = config.row_bytes[tile];
    if (tile >= kTiles && (rows != 0 || row_bytes != 0)) return "palette 1 has 8 tiles";
    if (rows > kMaxRows) return "more than 16 rows";
    if (row_bytes > kMaxRowBytes) return "more than 64 bytes in a row";
    if ((rows == 0) != (row_bytes == 0)) return "rows without bytes or bytes without rows";
  }
  std::copy_n(config.rows, kTiles, rows_);
  std::copy_n(config.row_bytes, kTiles, row_bytes_);
  std::memset(data_, 0, sizeof(data_));
  configured_ = true;
  return nullptr;
}

const char* TileModel::Release() {
  *this = TileModel();
  return nullptr;
}

const char* TileModel::CheckTile(int tile) const {
  if (!configured_) return "tiles are not configured";
  if (tile < 0 || tile >= kTiles) return "no such tile";
  if (rows_[tile] == 0) return "a tile without a shape";
  return nullptr;
}

const char* TileModel::Zero(int tile) {
  if (const char* fault = CheckTile(tile)) return fault;
  std::memset(data_[tile], 0, sizeof(data_[tile]));
  return nullptr;
}

const char* TileModel::Load(int tile, const void* base, int64_t stride) {
  if (const char* fault = CheckTile(tile)) return fault;
  std::memset(data_[tile], 0, sizeof(data_[tile]));
  for (int r = 0; r < rows_[tile]; ++r) {
    std::memcpy(data_[tile][r], static_cast<const uint8_t*>(base) + r * stride,
                static_cast<size_t>(row_bytes_[tile]));
  }
  return nullptr;
}

const char* TileModel::Store(int tile, void* base, int64_t stride) const {
  if (const char* fault = CheckTile(tile)) return fault;
  for (int r = 0; r < rows_[tile]; ++r) {
    std::memcpy(static_cast<uint8_t*>(base) + r * stride, data_[tile][r],
                static_cast<size_t>(row_bytes_[tile]));
  }
  return nullptr;
}

const char* TileModel::CheckDot(int c, int a, int b) const {
  for (const int tile : {c, a, b}) {
    if (const char* fault = CheckTile(tile)) return fault;
    if (row_bytes_[tile] % 4 != 0) return "a row that is no multiple of 4 bytes";
  }
  if (c == a || c == b || a == b) return "one tile in two places";
  if (rows_[c] != rows_[a]) return "C and A differ in rows";
  if (row_bytes_[c] != row_bytes_[b]) return "C and B differ in columns";
  if (row_bytes_[a] / 4 != rows_[b]) return "A's columns are not B's rows";
  return nullptr;
}

// Touches the model's registers alone; checking each access makes it many times slower.
NIBBLE_UNCHECKED const char* TileModel::DotSigned(int c, int a, int b) {
  if (const char* fault = CheckDot(c, a, b)) return fault;
  for (int m = 0; m < rows_[c]; ++m) {
    uint32_t sums[kMaxRowBytes / 4];
    std::memcpy(sums, data_[c][m], sizeof(sums));
    for (int k = 0; k < rows_[b]; ++k) {
      for (int n = 0; n < row_bytes_[c] / 4; ++n) {
        for (int j = 0; j < 4; ++j) {
          sums[n] += static_cast<uint32_t>(static_cast<int8_t>(data_[a][m][4 * k + j]) *
                                           static_cast<int8_t>(data_[b][k][4 * n + j]));
        }
      }
    }
    std::memcpy(data_[c][m], sums, sizeof(sums));
  }
  return nullptr;
}

const char* TileModel::DotBf16(int c, int a, int b) {
  if (const char* fault = CheckDot(c, a, b)) return fault;
  for (int m = 0; m < rows_[c]; ++m) {
    for (int n = 0; n < row_bytes_[c] / 4; ++n) {
      float chains[2] = {};
      for (int k = 0; k < rows_[b]; ++k) {
        for (int j = 0; j < 2; ++j) {
          chains[j] = FlushSubnormal(std::fma(FromBf16(data_[a][m] + 4 * k + 2 * j),
                                              FromBf16(data_[b][k] + 4 * n + 2 * j), chains[j]));
        }
      }
      float sum = 0.0F;
      std::memcpy(&sum, data_[c][m] + 4 * n, sizeof(sum));
      sum = FlushSubnormal(FlushSubnormal(sum) + FlushSubnormal(chains[0] + chains[1]));
      std::memcpy(data_[c][m] + 4 * n, &sum, sizeof(sum));
    }
  }
  return nullptr;
}

}  // namespace nibble::kernels::amx
