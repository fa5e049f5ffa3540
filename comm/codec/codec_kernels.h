// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the codecs of every instruction set are given: where things lie in the bytes of some groups.
// Included by files compiled for one instruction set: no library headers that emit code.
#pragma once

#include <cstdint>

namespace nibble::comm {

inline constexpr int kMaxGroupSize = 128;

// Byte offsets of the sections (README.md draws them), each a multiple of 16. Values lie in blocks
// of 32, which all group sizes are multiples of.
struct GroupLayout {
  int bits = 32;
  int group_size = kMaxGroupSize;
  bool log2_scales = false;
  bool spikes = false;
  bool rotation = false;
  int64_t values = 0;         // whole values: floats, bf16 or the bytes of 8-bit codes
  int64_t nibbles = 0;        // low 4 bits of codes of 4, 5 and 6 bits: 16 bytes a block
  int64_t pairs = 0;          // 2 bits: bits 4..5 of 6, 0..1 of 2 and 3: 8 bytes a block
  int64_t singles = 0;        // 1 bit: bit 4 of 5, bit 2 of 3: 4 bytes a block
  int64_t scales = 0;         // [num_groups] bf16 or codes of codec_scale.h
  int64_t zeros = 0;          // [num_groups] bytes
  int64_t spike_values = 0;   // [num_groups, 2] bf16: the least, the greatest
  int64_t spike_indices = 0;  // [num_groups, 2] bytes
  int64_t bytes = 0;          // of everything
};

struct CodecDesc;
// Of the bytes of so many groups.
GroupLayout LayoutOf(const CodecDesc& desc, int64_t num_groups);

// Each codes or decodes groups [first, first + count) of the layout from or to values
// x [count, group_size]; pieces [num_pieces] are added in order, `out` may be one of them.
#define NIBBLE_DECLARE_CODEC                                                                 \
  void EncodeGroups(const GroupLayout& layout, const float* x, int64_t first, int64_t count, \
                    uint8_t* out);                                                           \
  void DecodeGroups(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces, \
                    int64_t first, int64_t count, float* x);                                 \
  void ReduceGroups(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces, \
                    int64_t count, uint8_t* out);

namespace ref {
NIBBLE_DECLARE_CODEC
}
namespace avx2 {
NIBBLE_DECLARE_CODEC
}
namespace avx512vnni {
NIBBLE_DECLARE_CODEC
}
#undef NIBBLE_DECLARE_CODEC

}  // namespace nibble::comm
