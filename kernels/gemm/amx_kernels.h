// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What amx_gemm.cc (loops over blocks and threads) gives to the inner loops of *_amx.cc. Plain data
// only: included by sources that are compiled for a higher instruction set than the rest of the
// program. README.md draws the layouts.
#pragma once

#include <cstdint>

namespace nibble::kernels {

// A tile register has 16 rows of 64 bytes. A panel of weights is two tiles of 16 output channels
// side by side; a step is what one tile has of k: 64 bytes of a row of activations.
inline constexpr int64_t kAmxTileRows = 16;
inline constexpr int64_t kAmxPanel = 32;
inline constexpr int64_t kAmxRowBytes = 64;
inline constexpr int64_t kAmxStepRows = 16;  // rows of a weight tile: 4 bytes of k each
inline constexpr int64_t kAmxTileBytes = kAmxTileRows * kAmxRowBytes;
inline constexpr int64_t kAmxPanelRowBytes = kAmxPanel * 4;
inline constexpr int64_t kAmxPanelStepBytes = kAmxStepRows * kAmxPanelRowBytes;
// Steps whose weights stay in the first-level cache while rows pass by: 16 KiB of weights, and as
// much of the two row tiles that pass, and 8 KiB of sums, of 48.
inline constexpr int64_t kAmxStretchSteps = 8;
// Largest group of the float form: kMaxPackedGroup.
inline constexpr int64_t kAmxMaxGroupSteps = 16;
inline constexpr int64_t kAmxScratchBytes = kAmxMaxGroupSteps * kAmxPanelStepBytes;

// 4-bit weights as PackInt4Panels lays them out with a panel of 32, from the block's first panel
// on.
struct AmxInt4 {
  const uint8_t* codes;           // [num_panels, packed_k / 8, panel, 4]
  const uint8_t* integers;        // [num_panels, num_groups, panel] S - integer_offset
  const int32_t* integer_offset;  // [num_panels, panel]
  const uint8_t* zeros;           // [num_panels, num_groups, panel], or null: 8 everywhere
  const float* float_scales;      // [num_panels, num_groups, panel]: the float form
  int64_t packed_k;               // with groups padded to multiples of 8
  int64_t group;                  // padded
  int64_t num_groups;
};

// Some panels of weights times some rows.
struct AmxBlock {
  // Activations: [tiles of 16 rows, num_steps, 16, 64 bytes], zeros where rows or k end. Int8 in
  // the packed order of the weights' k; bfloat16 in the dense form. In the float form each group
  // starts a new step.
  const uint8_t* a;
  int64_t num_steps;
  int64_t rows;
  const float* a_scales;  // [rows]; integer weights

  int64_t num_panels;
  int64_t columns;  // output channels of the panels that exist
  AmxInt4 int4;
  // W8A8 and dense: [num_panels, num_steps, 16, panel, 4 bytes], 4 int8 or 2 bfloat16 of k; zeros
  // where k ends.
  const uint8_t* weights;
  const float* channel;  // [num_panels, panel] c; integer weights
  const float* bias;     // [columns] or null

  int32_t* sums;     // scratch [num_panels, rows to whole tiles, panel], or float bits
  uint8_t* scratch;  // [kAmxScratchBytes], aligned to 64
  float* d;          // [rows, d_stride]
  int64_t d_stride;
};

namespace amx {
// Around all use of tiles on a thread.
void BeginTiles();
void EndTiles();

void Int4Folded(const AmxBlock& block);
void Int4Integer(const AmxBlock& block);
void Int4Float(const AmxBlock& block);
void Int8(const AmxBlock& block);
void Bf16(const AmxBlock& block);

// One tile row block for Bf16: rows <= 16 of floats, rounded to nearest even, into [num_steps, 16,
// 64 bytes] with zeros where rows or k end.
struct Bf16Rows {
  const float* a;  // rows of a_stride
  int64_t a_stride;
  const int32_t* a_rows;  // [rows] which of them, or null: the first
  int64_t rows;
  int64_t k;
  int64_t num_steps;
  uint8_t* out;
};
void ArrangeBf16(const Bf16Rows& rows);
}  // namespace amx

}  // namespace nibble::kernels
