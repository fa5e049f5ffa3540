// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The low-bit codecs of compressed collectives: floats to bit planes and back, a group of values at
// a time (Flash Communication, arXiv:2412.04964 §3; bit splitting and spike reserving: its second
// version).
//
// A group is `group_size` neighbours of one row; q = round(x / scale + zero) in 0..2^bits - 1,
// asymmetric, with an integer zero point, so that 0 is exact. Groups lie inside a row, so what a
// token's values become does not depend on the batch they travel in. A row whose size is no
// multiple ends with a short group, which is coded as a whole one with zeros after its values.
//
// Bit-exact: all instruction sets write the same bytes and read the same floats. A group that holds
// NaN or an infinity decodes to NaN, all of it: faults show, they do not vanish. Finite values
// never decode to either; those beyond 2^127 (with rotation 2^120) are coded as that. Everything is
// computed in float32, with subnormals and in the default rounding mode. README.md has the
// arithmetic.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/cpu_features.h"
#include "base/status.h"

namespace nibble::comm {

enum class ScaleFormat {
  kBf16,      // scale in bf16
  kLog2Int8,  // scale = 2^(e / 8), e in one byte, rounded up: half the bytes for 0.4..0.6 dB; 8
              // steps an octave from 2^-16 to 2^10, beyond that coarse ones
};

struct CodecDesc {
  // 2, 3, 4, 5, 6, 8: integer codes. 16: bf16, 32: float32, whose options are ignored; their rows
  // are still cut into groups.
  int bits = 32;
  int group_size = 128;  // 32, 64, 128
  ScaleFormat scale = ScaleFormat::kBf16;
  bool spikes = false;    // each group's least and greatest value travel as bf16, the rest is coded
                          // over the range that is left
  bool rotation = false;  // codes are of the group's Hadamard transform (length group_size)

  friend bool operator==(const CodecDesc&, const CodecDesc&) = default;
  bool is_integer() const { return bits <= 8; }
};

// INVALID_ARGUMENT naming value and limit.
absl::Status Validate(const CodecDesc& desc);
// "int4 g128", "int3 g32 log2 spikes hadamard", "bf16", "float32"
std::string ToString(const CodecDesc& desc);
// Bits that travel for one value, metadata counted, alignment not: 4.1875 for "int4 g128".
double EffectiveBits(const CodecDesc& desc);

// Rows of values, cut into groups: group i is group i % groups_per_row of row i / groups_per_row.
struct RowGroups {
  int64_t row_size = 0;  // values of a row
  int group_size = 128;

  int64_t groups_per_row() const { return (row_size + group_size - 1) / group_size; }
};

// Bytes of `num_groups` encoded groups, a multiple of 16: planes of 4, 2 and 1 bits, scales, zero
// points, spikes, each for all groups and 16-byte aligned (README.md draws it).
int64_t EncodedBytes(const CodecDesc& desc, int64_t num_groups);

// Codes of groups [first, first + count) of rows `x` [num_rows, row_size] to `out`
// [EncodedBytes(count)], 16-byte aligned. All bytes of `out` are written.
void Encode(const CodecDesc& desc, const RowGroups& groups, const float* x, int64_t first,
            int64_t count, uint8_t* out, Isa isa);

// The other way, into `x`. `in` may come from a peer: any bytes decode to some floats, and nothing
// is read beyond EncodedBytes(count).
void Decode(const CodecDesc& desc, const RowGroups& groups, const uint8_t* in, int64_t first,
            int64_t count, float* x, Isa isa);

// x = the sum of what the ranks' codes decode to, in rank order in float32; with rotation of the
// rotated values, which are turned back once. `pieces` [num_ranks], each EncodedBytes(count).
// Decode is the same of one piece. REQUIRES num_ranks >= 1.
void DecodeSum(const CodecDesc& desc, const RowGroups& groups, const uint8_t* const* pieces,
               int num_ranks, int64_t first, int64_t count, float* x, Isa isa);

// The step in the middle of a collective, for one owner's groups: sums the ranks' codes in rank
// order in float32 (in the rotated domain) and codes the sum again. `pieces` [num_ranks], each
// EncodedBytes(count); `out` may be one of them. Bit-exact with DecodeSum + Encode but for
// rotation, which codes of codes keep: sums are taken in the rotated domain.
void ReduceEncoded(const CodecDesc& desc, const uint8_t* const* pieces, int num_ranks,
                   int64_t count, uint8_t* out, Isa isa);

}  // namespace nibble::comm
