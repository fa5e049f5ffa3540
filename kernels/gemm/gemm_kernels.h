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
inline constexpr int64_t kMaxBlockRows = 192;

struct DenseBlock {
  const void* weights;  // one panel: [k, panel] of the storage type
  int64_t k;
  int64_t columns;    // of the panel that exist: 1..panel
  const float* bias;  // [columns] or null
  const float* a;     // [rows, a_stride]
  int64_t a_stride;
  int64_t rows;
  float* d;  // [rows, d_stride]
  int64_t d_stride;
};

struct Int4Block {
  // One panel. Groups are `group` long, the last one `last_group`; both are multiples of 8, because
  // packing pads groups with zero activations.
  const uint8_t* codes;     // [k / 8, panel, 4]: low halves 4 values of k, high halves the next 4
  const uint8_t* integers;  // [num_groups, panel] S - integer_offset
  const int32_t* integer_offset;  // [panel] 0, or -128 where a channel's scales have mixed signs
  const uint8_t* zeros;           // [num_groups, panel], or null: 8 everywhere
  const float* float_scales;      // [num_groups, panel]: the float form instead of integers
  const float* channel;           // [panel] c; integer forms
  int64_t num_groups;
  int64_t group;
  int64_t last_group;
  int64_t columns;    // of the panel that exist: 1..panel
  const float* bias;  // [columns] or null
  // Rows. few_rows: a is [rows, a_stride]. many_rows: a is tiles of tile_rows rows, zeros where the
  // rows end, each [k / 4, tile_rows, 4]: what the inner loop reads is one stream. a_stride is then
  // the packed k, so that tile t starts at t * tile_rows * a_stride.
  const int8_t* a;
  int64_t a_stride;
  const float* a_scales;      // [rows]
  const int32_t* a_sums;      // [rows] sum over k
  const int32_t* group_sums;  // [rows to whole tiles, num_groups] sum over the k of a group
  int64_t rows;
  float* d;  // [rows, d_stride]
  int64_t d_stride;
};

// What a panel variant gives to panel_gemm.cc.
struct DenseKernels {
  int64_t panel;  // output channels per panel
  int64_t lanes;  // floats per vector register; bf16 is stored in pairs of vectors
  int64_t tile_rows;
  void (*multiply)(const DenseBlock& block);
};
struct AmxBlock;  // amx_kernels.h
struct Int4Kernels {
  int64_t panel;
  int64_t tile_rows;                          // rows per register tile of `many_rows`
  int64_t max_few_rows;                       // up to here `few_rows` is faster
  bool many_rows_uses_groups;                 // many_rows reads group_sums (else a_sums)
  void (*few_rows)(const Int4Block& block);   // unpacks in registers: each weight byte is read once
  void (*many_rows)(const Int4Block& block);  // unpacks into cache first; rows <= kMaxBlockRows
  void (*on_tiles)(const AmxBlock& block) = nullptr;  // AMX: instead of many_rows
};

namespace avx2 {
void DenseF32(const DenseBlock& block);
void DenseBf16(const DenseBlock& block);
void DenseF16(const DenseBlock& block);
void Int4FewRowsInteger(const Int4Block& block);
void Int4FewRowsFloat(const Int4Block& block);
void Int4ManyRowsInteger(const Int4Block& block);
void Int4ManyRowsFloat(const Int4Block& block);
}  // namespace avx2

namespace avx512vnni {
void DenseF32(const DenseBlock& block);
void DenseBf16(const DenseBlock& block);
void DenseF16(const DenseBlock& block);
void Int4FewRowsInteger(const Int4Block& block);
void Int4FewRowsFloat(const Int4Block& block);
void Int4ManyRowsFolded(const Int4Block& block);
void Int4ManyRowsInteger(const Int4Block& block);
void Int4ManyRowsFloat(const Int4Block& block);
}  // namespace avx512vnni

}  // namespace nibble::kernels
