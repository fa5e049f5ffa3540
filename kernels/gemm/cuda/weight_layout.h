// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Where everything of a weight lies in device memory. Plain arithmetic, for packing, kernels and
// tests; README.md has the drawings.
#pragma once

#include <cstdint>

#include "kernels/gemm/gemm.h"

namespace nibble::kernels::cuda {

// Integer weights lie in units of 512 bytes: 16 output channels x 64 k of 4 bits, or x 32 k of 8
// bits; 16 bytes for each lane of the warp that multiplies them.
inline constexpr int64_t kUnitChannels = 16;
inline constexpr int64_t kUnitBytes = 512;
inline constexpr int64_t kInt4UnitK = 64;
inline constexpr int64_t kInt8UnitK = 32;
// One matrix instruction's k. A group's scale is constant over it.
inline constexpr int64_t kStepK = 32;
// n is padded to this.
inline constexpr int64_t kPanelChannels = 64;
// k is padded to this many bytes of a row of activations: 128 k of int8, 64 of 16 bits.
inline constexpr int64_t kStageBytes = 128;
inline constexpr int64_t kIntegerStageK = kStageBytes;
inline constexpr int64_t kHalfStageK = kStageBytes / 2;

// What is the same for all weights of one description. Zero points come last, so that weights with
// and without them agree in the rest.
struct WeightLayout {
  int64_t padded_n = 0;
  int64_t padded_k = 0;
  int64_t codes_bytes = 0;
  // W4A8. Group of k is k >> group_shift; group sizes that are no power of two are stored as
  // several of the largest power of two that divides them, with equal scales.
  int group_shift = 0;
  int64_t num_groups = 0;
  // Offsets into the scales, multiples of 64; what a form lacks has no bytes.
  //   group_scales: [padded_n / 16, num_groups, 8, 2] S as a byte, or the float scale
  //   channel:      float [padded_n] c; not of the float form
  //   offset:       int32 [padded_n] integer form: S is the unsigned byte plus this (0 or -128)
  //   zeros:        uint8 [padded_n / 16, num_groups, 8, 2], where the weight has zero points
  int64_t channel_offset = 0;
  int64_t integer_offset = 0;
  int64_t zeros_offset = 0;
  int64_t scales_bytes = 0;  // without zero points
  int64_t zeros_bytes = 0;   // where there are any
};

// REQUIRES Supports(desc).
WeightLayout MakeWeightLayout(const GemmDesc& desc);

// The largest power of two that divides a group (at least one step), as a shift; of k in one group,
// one that no k reaches. -1: group_size is no multiple of kStepK.
int GroupShift(const GemmDesc& desc);

// Element of group_scales and of zeros: rows g and g + 8 of a unit side by side, as a lane has
// both.
constexpr int64_t ScaleIndex(const WeightLayout& layout, int64_t n, int64_t group) {
  return (n / kUnitChannels * layout.num_groups + group) * kUnitChannels + n % 8 * 2 +
         n % kUnitChannels / 8;
}

// Where code (n, k) lies: the byte, and the shift within it (0 or 4; 8-bit codes: 0).
struct CodePosition {
  int64_t byte;
  int shift;
};
// Lane 4g + t has rows g and g + 8 and, of each step of 32 k, k = 4t .. 4t + 3 (low halves) and
// 16 + 4t .. 16 + 4t + 3 (high halves): its word 2 * step + (row >= 8).
constexpr CodePosition Int4Position(const WeightLayout& layout, int64_t n, int64_t k) {
  const int64_t unit = n / kUnitChannels * (layout.padded_k / kInt4UnitK) + k / kInt4UnitK;
  const int64_t lane = n % 8 * 4 + k % 16 / 4;
  const int64_t word = k % kInt4UnitK / kStepK * 2 + n % kUnitChannels / 8;
  return {unit * kUnitBytes + lane * 16 + word * 4 + k % 4, k % kStepK < 16 ? 0 : 4};
}
// The lane's four registers of one step in order: row g, row g + 8, and both for 16 k on.
constexpr CodePosition Int8Position(const WeightLayout& layout, int64_t n, int64_t k) {
  const int64_t unit = n / kUnitChannels * (layout.padded_k / kInt8UnitK) + k / kInt8UnitK;
  const int64_t lane = n % 8 * 4 + k % 16 / 4;
  const int64_t word = k % kStepK / 16 * 2 + n % kUnitChannels / 8;
  return {unit * kUnitBytes + lane * 16 + word * 4 + k % 4, 0};
}

}  // namespace nibble::kernels::cuda
