// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A 4-bit weight matrix in its plain form: what quantizers make, checkpoints hold, and GEMM
// variants pack.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"

namespace nibble::kernels {

// w[n, k] = scales[n, k / group_size] * (codes[n, k] - zero), zero = 8 or zero_points[n, k /
// group_size].
struct Int4Weight {
  int64_t n = 0;  // output channels
  int64_t k = 0;  // input channels
  int64_t group_size =
      128;  // input channels per scale; the last group may be shorter; k for per-channel scales
  std::vector<uint8_t>
      codes;  // [n, ceil(k / 2)]; low half of byte j is k = 2j, high half k = 2j + 1
  std::vector<float> scales;         // [n, num_groups], any sign, finite
  std::vector<uint8_t> zero_points;  // [n, num_groups] in 0..15, or empty: 8 everywhere

  int64_t num_groups() const { return (k + group_size - 1) / group_size; }
  int64_t row_bytes() const { return (k + 1) / 2; }
  int Code(int64_t row, int64_t column) const {
    const uint8_t byte = codes[static_cast<size_t>(row * row_bytes() + column / 2)];
    return column % 2 == 0 ? byte & 15 : byte >> 4;
  }
  int Zero(int64_t row, int64_t column) const {
    return zero_points.empty()
               ? 8
               : zero_points[static_cast<size_t>(row * num_groups() + column / group_size)];
  }
  float Dequantize(int64_t row, int64_t column) const {
    return scales[static_cast<size_t>(row * num_groups() + column / group_size)] *
           static_cast<float>(Code(row, column) - Zero(row, column));
  }

  // Sizes of the vectors against n, k and group_size; finite scales; zero points in range.
  absl::Status Validate() const;
};

// How group scales enter the arithmetic (reference: Integer Scale, arXiv:2405.14597).
enum class ScaleForm {
  kFolded,   // scales[n, g] = S * c[n], S integer in 1..16 or -15..-1, multiplied into the code
             // while unpacking: (code - 8) * S in -128..120
  kInteger,  // scales[n, g] ~ S * c[n], S an 8-bit integer, per-group int32 sums times S, codes
             // exact
  kFloat,  // float scale per group, one int-to-float conversion per group and output: the baseline
};

// Folded form of the scales of one matrix: scales[n, g] == integers[n, g] * channel[n] within
// `tolerance` relative.
struct FoldedScales {
  std::vector<int8_t> integers;  // [n, num_groups], 1..16 or -15..-1
  std::vector<float> channel;    // [n], not negative
};
// Finds it for every channel, taking the largest channel scale that fits. FAILED_PRECONDITION,
// naming the channel, when a channel's scales are no such multiples of one number (or the weight
// has zero points).
absl::StatusOr<FoldedScales> FindFoldedScales(const Int4Weight& weight, float tolerance = 1e-5F);

}  // namespace nibble::kernels
