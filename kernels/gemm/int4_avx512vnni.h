// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the AVX-512 VNNI kernels of 4-bit weights share (integer_avx512vnni.h says how).
#pragma once

#include "kernels/gemm/integer_avx512vnni.h"

namespace nibble::kernels::avx512vnni {
namespace {

inline __m512i LowHalves(__m512i codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
inline __m512i HighHalves(__m512i codes) {
  return _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(15));
}

// Scales of group `g`, output channels [16 v, 16 v + 16).
inline __m512i LoadIntegers(const Int4Block& block, int64_t g, int v) {
  const int64_t at = g * kPanel + v * kLanes;
  return _mm512_add_epi32(LoadBytes(block.integers + at),
                          _mm512_loadu_si512(block.integer_offset + v * kLanes));
}

inline int64_t GroupLength(const Int4Block& block, int64_t g) {
  return g + 1 < block.num_groups ? block.group : block.last_group;
}

}  // namespace
}  // namespace nibble::kernels::avx512vnni
