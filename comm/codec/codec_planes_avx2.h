// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Planes of a block, 32 codes, for the AVX2 codec alone: everything is static.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "comm/codec/codec_kernels.h"

namespace nibble::comm::avx2 {

// A block's 32 codes, as bytes in their order, to planes and back.

static inline __m128i LoadBytes16(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
static inline void StoreBytes16(uint8_t* p, __m128i bytes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

// Byte j and byte j + 16, moved up by 4 bits, are one.
static inline __m128i JoinHalves(__m256i codes) {
  return _mm_or_si128(_mm256_castsi256_si128(codes),
                      _mm_slli_epi16(_mm256_extracti128_si256(codes, 1), 4));
}

static inline void StorePairs(uint8_t* out, __m256i codes) {
  const __m128i halves = JoinHalves(codes);
  const __m128i quarters = _mm_or_si128(halves, _mm_slli_epi16(_mm_srli_si128(halves, 8), 2));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), quarters);
}

// The bit of each code that lies `left` below the top of its byte.
static inline void StoreSingles(uint8_t* out, __m256i codes, int left) {
  const int bits = _mm256_movemask_epi8(_mm256_slli_epi16(codes, left));
  __builtin_memcpy(out, &bits, 4);
}

static inline __m256i LoadNibbles(const uint8_t* in) {
  const __m128i bytes = LoadBytes16(in);
  const __m256i both = _mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

static inline __m256i LoadPairs(const uint8_t* in) {
  const __m256i bytes =
      _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(in)));
  const __m256i moved = _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 2, 4, 6));
  return _mm256_and_si256(moved, _mm256_set1_epi8(3));
}

// `bit` where the plane has one.
static inline __m256i LoadSingles(const uint8_t* in, int bit) {
  int word;
  __builtin_memcpy(&word, in, 4);
  const __m256i spread = _mm256_shuffle_epi8(
      _mm256_set1_epi32(word), _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                                2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i mask = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201U));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask);
  return _mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(bit)));
}

template <int kBits>
static inline void StoreCodes(const GroupLayout& layout, __m256i codes, int64_t block,
                              uint8_t* out) {
  uint8_t* const nibbles = out + layout.nibbles + 16 * block;
  uint8_t* const pairs = out + layout.pairs + 8 * block;
  uint8_t* const singles = out + layout.singles + 4 * block;
  const __m256i low4 = _mm256_set1_epi8(15);
  const __m256i low2 = _mm256_set1_epi8(3);
  if constexpr (kBits == 8) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + layout.values + 32 * block), codes);
  }
  if constexpr (kBits == 6) {
    StorePairs(pairs, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low2));
  }
  if constexpr (kBits == 5) StoreSingles(singles, codes, 3);
  if constexpr (kBits == 5 || kBits == 6) {
    StoreBytes16(nibbles, JoinHalves(_mm256_and_si256(codes, low4)));
  }
  if constexpr (kBits == 4) StoreBytes16(nibbles, JoinHalves(codes));
  if constexpr (kBits == 3) {
    StoreSingles(singles, codes, 5);
    StorePairs(pairs, _mm256_and_si256(codes, low2));
  }
  if constexpr (kBits == 2) StorePairs(pairs, codes);
}

template <int kBits>
static inline __m256i LoadCodes(const GroupLayout& layout, const uint8_t* in, int64_t block) {
  const uint8_t* const nibbles = in + layout.nibbles + 16 * block;
  const uint8_t* const pairs = in + layout.pairs + 8 * block;
  const uint8_t* const singles = in + layout.singles + 4 * block;
  if constexpr (kBits == 8) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + layout.values + 32 * block));
  }
  if constexpr (kBits == 6) {
    return _mm256_or_si256(LoadNibbles(nibbles), _mm256_slli_epi16(LoadPairs(pairs), 4));
  }
  if constexpr (kBits == 5) return _mm256_or_si256(LoadNibbles(nibbles), LoadSingles(singles, 16));
  if constexpr (kBits == 4) return LoadNibbles(nibbles);
  if constexpr (kBits == 3) return _mm256_or_si256(LoadPairs(pairs), LoadSingles(singles, 4));
  if constexpr (kBits == 2) return LoadPairs(pairs);
}

}  // namespace nibble::comm::avx2
