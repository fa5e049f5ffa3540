// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The inner loops of the panel variants: one panel of packed weights times a block of rows. Plain
// data only: included by sources that are compiled for a higher instruction set than the rest of
// the program. README.md draws the layouts.
#pragma once

#include <cstdint>

// Before a loop over the registers of a tile. Left alone, g++ unrolls only some of these loops, and
// one index that is not a constant puts the whole array of registers into memory (measured: 2 to 4
// times slower).
#if defined(__clang__)
#define NIBBLE_UNROLL _Pragma("unroll")
#else
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace nibble::kernels {

// Longest group of an Int4Block. int32 partial sums of one group stay below 127 * 15 * 1024 < 2^21,
// so that their conversion to float is exact.
inline constexpr int64_t kMaxPackedGroup = 1024;
// Most rows of one block.
inline constexpr int64_t kMaxBlockRows = 96;
// Most rows of a tile of integer weights: accumulators are [rows][2 vectors] beside weights, masks
// and activations. Of 16 registers 3 * 2 sums of 16 bits and as many of 32; of 32 registers 12 * 2.
namespace avx2 {
inline constexpr int64_t kMaxTileRows = 3;
}
namespace avx512vnni {
inline constexpr int64_t kMaxTileRows = 12;
}
// What the inner loops of integer weights take of k at once, and what packing pads to.
inline constexpr int64_t kInt4StepK = 8;
inline constexpr int64_t kInt8StepK = 4;

struct DenseBlock {
  // One panel: [k, panel] of the storage type; 4 bit: [k / 8, panel] of 32 bits, the lowest four
  // for the first of 8 k.
  const void* weights;
  // 4 bit: w = scales[k / group] * (code - zeros[k / group]).
  const float* scales;   // [num_groups, panel]
  const uint8_t* zeros;  // [num_groups, panel], or null: 8 everywhere
  int64_t group;
  int64_t k;
  int64_t columns;    // of the panel that exist: 1..panel
  const float* bias;  // [columns] or null
  const float* a;     // rows of a_stride
  int64_t a_stride;
  const int32_t* a_rows;  // [rows] which of them, or null: the first
  int64_t rows;
  float* d;  // [rows, d_stride]
  int64_t d_stride;
};

// Rows of int8 activations as the inner loops read them, and where their outputs go. Rows come in
// tiles of `tile_rows`, the last one of what is left; a tile of r rows is [k / 4, r, 4] in the
// packed order of the weights' k: one stream, whatever stride the rows had.
struct RowBlock {
  const int8_t* a;
  int64_t k;              // packed
  const float* a_scales;  // [rows]
  const int32_t* a_sums;  // [rows] sum over k
  // W4A8: per tile of r rows [num_groups, r], the sums over a group's k times -8, or times -1 where
  // the weight has zero points.
  const int32_t* group_starts;
  int64_t rows;
  int64_t tile_rows;
  const float* bias;  // [columns] or null
  float* d;           // [rows, d_stride]
  int64_t d_stride;
  int64_t columns;  // of the panel that exist: 1..panel
};

// One panel of 4-bit weights. Groups are `group` long, the last one `last_group`; both are
// multiples of 8.
struct Int4Block {
  const uint8_t* codes;     // [k / 8, panel, 4]: low halves 4 values of k, high halves the next 4
  const uint8_t* integers;  // [num_groups, panel] S - integer_offset
  const int32_t* integer_offset;  // [panel] 0, or -128 where a channel's scales have mixed signs
  const uint8_t* zeros;           // [num_groups, panel], or null: 8 everywhere
  const float* float_scales;      // [num_groups, panel]: the float form instead of integers
  const float* channel;           // [panel] c; integer forms
  int64_t num_groups;
  int64_t group;
  int64_t last_group;
  RowBlock rows;
};

// One panel of 8-bit weights.
struct Int8Block {
  const uint8_t* weights;  // [k / 4, panel, 4]: w + 128 (AVX-512, AMX) or w (AVX2)
  const float* channel;    // [panel] c
  RowBlock rows;
};

// What a panel variant gives to the loops around it.
struct DenseKernels {
  int64_t panel;  // output channels per panel
  int64_t lanes;  // floats per vector register; bf16 is stored in pairs of vectors
  int64_t tile_rows;
  void (*multiply)(const DenseBlock& block);
};
struct AmxBlock;  // amx_kernels.h
struct Int4Kernels {
  int64_t panel;
  int64_t max_tile_rows;                     // most rows of a tile
  void (*multiply)(const Int4Block& block);  // up to kMaxBlockRows rows
  // AMX: instead of `multiply` for more rows than these.
  int64_t max_few_rows = 0;
  void (*on_tiles)(const AmxBlock& block) = nullptr;
};
struct Int8Kernels {
  int64_t panel;
  int64_t max_tile_rows;
  bool offset_weights;  // weights are stored as w + 128
  void (*multiply)(const Int8Block& block);
};

// One tile of activations, by RowBlock: rows of a_stride to [packed k / 4, rows, 4], and the starts
// of groups. Each group of `group` values (the last one what is left of k) is padded with
// zeros to the next multiple of `step`.
struct TileSource {
  const int8_t* a;
  int64_t a_stride;
  const int32_t* a_rows;  // [rows] which of them, or null: the first
  int64_t rows;
  int64_t k;
  int64_t group;
  int64_t step;
  int8_t* tile;
  int32_t* group_starts;  // [num_groups, rows], or null
  int32_t group_factor;   // times the sum of a group is its start
};

// Row `row` of a block, in memory. Unnamed: compiled for one instruction set, it may serve no
// other.
namespace {
template <typename T>
inline const T* RowAt(const T* a, int64_t a_stride, const int32_t* a_rows, int64_t row) {
  return a + (a_rows == nullptr ? row : int64_t{a_rows[row]}) * a_stride;
}
}  // namespace

namespace avx2 {
void ArrangeTile(const TileSource& source);
void DenseF32(const DenseBlock& block);
void DenseBf16(const DenseBlock& block);
void DenseF16(const DenseBlock& block);
void DenseInt4(const DenseBlock& block);
void Int4Integer(const Int4Block& block);
void Int4Float(const Int4Block& block);
void Int8(const Int8Block& block);
}  // namespace avx2

namespace avx512vnni {
void DenseF32(const DenseBlock& block);
void DenseBf16(const DenseBlock& block);
void DenseF16(const DenseBlock& block);
void DenseInt4(const DenseBlock& block);
void Int4Folded(const Int4Block& block);
void Int4Integer(const Int4Block& block);
void Int4Float(const Int4Block& block);
void Int8(const Int8Block& block);
}  // namespace avx512vnni

}  // namespace nibble::kernels
