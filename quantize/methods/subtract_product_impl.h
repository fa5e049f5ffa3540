// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The body of SubtractProduct, for sources that define kLanes (doubles of a vector register) and
// kVectors (registers of a row of the tile) before they include this within their namespace. All
// static: nothing here may become a symbol that the linker could choose for other CPUs.

#pragma once

// NOLINTBEGIN(misc-definitions-in-headers)

typedef double Vector __attribute__((vector_size(kLanes * sizeof(double)), aligned(8)));

// Rows of the tile that stay in registers: 4 rows of kVectors vectors.
constexpr int kTileRows = 4;
constexpr int kTileColumns = kLanes * kVectors;
// Rows of b between two passes over c: with kTileColumns columns they stay in the first cache.
constexpr int64_t kDepthStep = 128;

template <int kRows>
static inline void Tile(const SubtractProductArgs& args, int64_t row, int64_t column, int64_t first,
                        int64_t last) {
  Vector sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    const double* c = args.c + (row + r) * args.ldc + column;
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = *reinterpret_cast<const Vector*>(c + v * kLanes);
    }
  }
  for (int64_t i = first; i < last; ++i) {
    const double* b = args.b + i * args.ldb + column;
    for (int r = 0; r < kRows; ++r) {
      const double a = args.a[(row + r) * args.lda + i];
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] -= a * *reinterpret_cast<const Vector*>(b + v * kLanes);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    double* c = args.c + (row + r) * args.ldc + column;
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<Vector*>(c + v * kLanes) = sums[r][v];
    }
  }
}

// The columns that fill no tile.
static inline void Rest(const SubtractProductArgs& args, int64_t column, int64_t first,
                        int64_t last) {
  for (int64_t row = 0; row < args.m; ++row) {
    double* c = args.c + row * args.ldc;
    for (int64_t i = first; i < last; ++i) {
      const double a = args.a[row * args.lda + i];
      const double* b = args.b + i * args.ldb;
      for (int64_t j = column; j < args.n; ++j) c[j] -= a * b[j];
    }
  }
}

void SubtractProduct(const SubtractProductArgs& args) {
  for (int64_t first = 0; first < args.depth; first += kDepthStep) {
    const int64_t last = first + kDepthStep < args.depth ? first + kDepthStep : args.depth;
    int64_t column = 0;
    for (; column + kTileColumns <= args.n; column += kTileColumns) {
      int64_t row = 0;
      for (; row + kTileRows <= args.m; row += kTileRows) {
        Tile<kTileRows>(args, row, column, first, last);
      }
      for (; row < args.m; ++row) Tile<1>(args, row, column, first, last);
    }
    if (column < args.n) Rest(args, column, first, last);
  }
}

// NOLINTEND(misc-definitions-in-headers)
