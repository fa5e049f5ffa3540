// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W4A8 with folded scales for many rows: a stretch of k becomes bytes w + 128 in the first-level
// cache, once for all rows, and its products add up over all of k as those of 8-bit weights do.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/int4_avx512vnni.h"

namespace nibble::kernels::avx512vnni {
namespace {

// From here on the folding of a panel is divided by enough rows to cost less than scaling the sums
// of groups.
constexpr int64_t kMinFoldRows = 48;
// As much of a panel as stays in the first-level cache while the tiles pass, or one longer group.
constexpr int64_t kStretch = 512;

// Bytes (u - 8) * S + 128, in 0..248. S in 1..16: u * S + a with a = 128 - 8 S. S in -15..-1: the
// same with |S| and the complement of u, because (u - 8) * S = ((15 - u) - 7) * |S|, so a = 128 -
// 7 |S|. Two products in a 16-bit lane never carry into each other, so one 16-bit multiplication
// serves both.
struct Fold {
  __m512i complement;  // 15 in each byte where S is negative
  __m512i multiplier;  // |S| in each 16-bit half
  __m512i addend;      // a in each byte
  Fold(const Int4Block& block, int64_t g, int v) {
    const __m512i s = LoadIntegers(block, g, v);
    const __m512i negative = _mm512_srai_epi32(s, 31);
    const __m512i magnitude = _mm512_abs_epi32(s);
    complement = _mm512_and_si512(negative, _mm512_set1_epi8(15));
    multiplier = _mm512_or_si512(magnitude, _mm512_slli_epi32(magnitude, 16));
    // 8 S or 7 |S|, at most 128
    const __m512i zero =
        _mm512_sub_epi32(_mm512_slli_epi32(magnitude, 3), _mm512_and_si512(negative, magnitude));
    const __m512i zero2 = _mm512_or_si512(zero, _mm512_slli_epi32(zero, 8));
    addend = _mm512_sub_epi8(_mm512_set1_epi8(static_cast<char>(128)),
                             _mm512_or_si512(zero2, _mm512_slli_epi32(zero2, 16)));
  }
  inline __m512i operator()(__m512i codes) const {
    const __m512i u = _mm512_xor_si512(codes, complement);
    return _mm512_add_epi8(_mm512_mullo_epi16(u, multiplier), addend);
  }
};

// `length` k of one group.
inline void Unpack(const Int4Block& block, int64_t g, const uint8_t* codes, int64_t length,
                   uint8_t* out) {
  const Fold fold[kVectors] = {Fold(block, g, 0), Fold(block, g, 1)};
  for (int64_t k = 0; k < length; k += 8) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i packed = _mm512_loadu_si512(codes + v * 64);
      Prefetch(codes + kAheadBytes + v * 64);
      _mm512_store_si512(out + v * 64, fold[v](LowHalves(packed)));
      _mm512_store_si512(out + kStepBytes + v * 64, fold[v](HighHalves(packed)));
    }
    codes += kStepBytes;
    out += 2 * kStepBytes;
  }
}

}  // namespace

void Int4Folded(const Int4Block& block) {
  const RowBlock& rows = block.rows;
  if (rows.rows < kMinFoldRows) return Int4Integer(block);
  alignas(64) uint8_t weights[kMaxPackedGroup / 4 * kStepBytes];  // [stretch / 4, kPanel, 4]
  alignas(64) int32_t sums[kMaxBlockRows * kPanel];
  StartByteSums(rows, sums);
  const uint8_t* codes = block.codes;
  int64_t begin = 0;
  for (int64_t g = 0; g < block.num_groups;) {
    int64_t stretch = 0;
    for (; g < block.num_groups; ++g) {
      const int64_t length = GroupLength(block, g);
      if (stretch > 0 && stretch + length > kStretch) break;
      Unpack(block, g, codes, length, weights + stretch / 4 * kStepBytes);
      codes += length / 8 * kStepBytes;
      stretch += length;
    }
    ForTiles(rows, ByteTiles<false>{rows, weights, begin, stretch, sums});
    begin += stretch;
  }
  FinishSums(rows, block.channel, sums);
}

}  // namespace nibble::kernels::avx512vnni
