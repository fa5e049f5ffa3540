// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Planes of a group, 2, 4 or 8 registers of 16 values, for the AVX-512 codec alone: everything is
// static.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "comm/codec/codec_kernels.h"

namespace nibble::comm::avx512vnni {

// Loops over the registers of a group must be unrolled, or the group lives on the stack.
#define NIBBLE_UNROLL _Pragma("GCC unroll 8")

// Codes to planes. `codes` are bytes in their order, 64 to a register.

// 16-byte lanes hold half a block each: byte j of an even lane and byte j of the odd one after it,
// moved up by 4 bits, are one byte of the result, in which the lanes lie one after the other.
static inline __m512i JoinHalves(__m512i codes0, __m512i codes1) {
  const __m512i even = _mm512_shuffle_i64x2(codes0, codes1, 0x88);
  const __m512i odd = _mm512_shuffle_i64x2(codes0, codes1, 0xdd);
  return _mm512_or_si512(even, _mm512_slli_epi16(odd, 4));
}

// The first 16 * kBlocks bytes.
template <int kBlocks>
static inline void StoreNibbles(uint8_t* out, __m512i bytes) {
  if constexpr (kBlocks == 4) _mm512_storeu_si512(out, bytes);
  if constexpr (kBlocks == 2) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(bytes));
  }
  if constexpr (kBlocks == 1) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(bytes));
  }
}

// 2-bit codes: bytes of two, each 16 values apart, whose upper 8 bytes of a lane go between.
template <int kBlocks>
static inline void StorePairs(uint8_t* out, __m512i codes0, __m512i codes1) {
  const __m512i halves = JoinHalves(codes0, codes1);
  const __m512i quarters =
      _mm512_or_si512(halves, _mm512_slli_epi16(_mm512_bsrli_epi128(halves, 8), 2));
  const __m512i bytes =
      _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), quarters);
  if constexpr (kBlocks == 4) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(bytes));
  }
  if constexpr (kBlocks == 2) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(bytes));
  }
  if constexpr (kBlocks == 1) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(bytes));
  }
}

// The bit of each code that `bit` has set.
template <int kBlocks>
static inline void StoreSingles(uint8_t* out, __m512i codes0, __m512i codes1, int bit) {
  const __m512i mask = _mm512_set1_epi8(static_cast<char>(bit));
  const uint64_t low = _mm512_test_epi8_mask(codes0, mask);
  __builtin_memcpy(out, &low, kBlocks == 1 ? 4 : 8);
  if constexpr (kBlocks == 4) {
    const uint64_t high = _mm512_test_epi8_mask(codes1, mask);
    __builtin_memcpy(out + 8, &high, 8);
  }
}

template <int kBlocks>
static inline void StorePlanes(const GroupLayout& layout, __m512i codes0, __m512i codes1,
                               int64_t group, uint8_t* out) {
  uint8_t* const nibbles = out + layout.nibbles + group * (16 * kBlocks);
  uint8_t* const pairs = out + layout.pairs + group * (8 * kBlocks);
  uint8_t* const singles = out + layout.singles + group * (4 * kBlocks);
  const __m512i low4 = _mm512_set1_epi8(15);
  const __m512i low2 = _mm512_set1_epi8(3);
  switch (layout.bits) {
    case 8: {
      uint8_t* const values = out + layout.values + group * (32 * kBlocks);
      if constexpr (kBlocks == 1) {
        StoreNibbles<2>(values, codes0);
      } else {
        StoreNibbles<4>(values, codes0);
        if constexpr (kBlocks == 4) StoreNibbles<4>(values + 64, codes1);
      }
      break;
    }
    case 6:
      StorePairs<kBlocks>(pairs, _mm512_and_si512(_mm512_srli_epi16(codes0, 4), low2),
                          _mm512_and_si512(_mm512_srli_epi16(codes1, 4), low2));
      StoreNibbles<kBlocks>(
          nibbles, JoinHalves(_mm512_and_si512(codes0, low4), _mm512_and_si512(codes1, low4)));
      break;
    case 5:
      StoreSingles<kBlocks>(singles, codes0, codes1, 16);
      StoreNibbles<kBlocks>(
          nibbles, JoinHalves(_mm512_and_si512(codes0, low4), _mm512_and_si512(codes1, low4)));
      break;
    case 4:
      StoreNibbles<kBlocks>(nibbles, JoinHalves(codes0, codes1));
      break;
    case 3:
      StoreSingles<kBlocks>(singles, codes0, codes1, 4);
      StorePairs<kBlocks>(pairs, _mm512_and_si512(codes0, low2), _mm512_and_si512(codes1, low2));
      break;
    default:
      StorePairs<kBlocks>(pairs, codes0, codes1);
  }
}

// Planes to floats.

static inline __m512i LoadNibbles(const uint8_t* block) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
}

// Bytes of 4 values each, twice: a shift by 0 and 2 gives the block's values 0..15, by 4 and 6 the
// others.
static inline __m512i LoadPairs(const uint8_t* block) {
  return _mm512_cvtepu8_epi32(
      _mm_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(block))));
}
static inline __m512i FirstPairs(__m512i bytes) {
  return _mm512_srlv_epi32(bytes,
                           _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2));
}
static inline __m512i LastPairs(__m512i bytes) {
  return _mm512_srlv_epi32(bytes,
                           _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 6, 6, 6, 6, 6, 6, 6, 6));
}

static inline uint32_t LoadSingles(const uint8_t* block) {
  uint32_t bits;
  __builtin_memcpy(&bits, block, 4);
  return bits;
}

static inline __m512 Dequantize(__m512i codes, __m512i zero, __m512 scale) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero)), scale);
}

// One of 32 values: the lower table where `upper` has no bit. Only the low 4 bits of an index
// count.
static inline __m512 LookUp(__m512i index, __mmask16 upper, __m512 low_table, __m512 high_table) {
  return _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(index, low_table), upper, index,
                                    high_table);
}

// v = (codes - zero) * scale. Inlined always, as its callers are: a call would put the group on the
// stack.
template <int kVecs>
[[gnu::always_inline]] static inline void LoadPlanes(const GroupLayout& layout, const uint8_t* in,
                                                     int64_t group, __m512i zero, __m512 scale,
                                                     __m512 (&v)[kVecs]) {
  constexpr int kBlocks = kVecs / 2;
  const uint8_t* const nibbles = in + layout.nibbles + group * (16 * kBlocks);
  const uint8_t* const pairs = in + layout.pairs + group * (8 * kBlocks);
  const uint8_t* const singles = in + layout.singles + group * (4 * kBlocks);
  // Codes of up to 4 bits are looked up among all values that they can be; those of 2 stand in the
  // table 4 times, so that bits beside them do no harm.
  const __m512i all = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i all4 = _mm512_and_si512(all, _mm512_set1_epi32(3));
  switch (layout.bits) {
    case 8: {
      const uint8_t* const values = in + layout.values + group * (32 * kBlocks);
      NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
        v[i] = Dequantize(LoadNibbles(values + 16 * i), zero, scale);
      }
      break;
    }
    case 6: {
      const __m512i low4 = _mm512_set1_epi32(15);
      const __m512i high2 = _mm512_set1_epi32(0x30);
      NIBBLE_UNROLL for (int i = 0; i < kBlocks; ++i) {
        const __m512i nibble = LoadNibbles(nibbles + 16 * i);
        const __m512i pair = _mm512_slli_epi32(LoadPairs(pairs + 8 * i), 4);
        const __m512i first = _mm512_or_si512(_mm512_and_si512(nibble, low4),
                                              _mm512_and_si512(FirstPairs(pair), high2));
        const __m512i last =
            _mm512_or_si512(_mm512_srli_epi32(nibble, 4), _mm512_and_si512(LastPairs(pair), high2));
        v[2 * i] = Dequantize(first, zero, scale);
        v[2 * i + 1] = Dequantize(last, zero, scale);
      }
      break;
    }
    case 5: {
      const __m512 low = Dequantize(all, zero, scale);
      const __m512 high = Dequantize(_mm512_add_epi32(all, _mm512_set1_epi32(16)), zero, scale);
      NIBBLE_UNROLL for (int i = 0; i < kBlocks; ++i) {
        const __m512i nibble = LoadNibbles(nibbles + 16 * i);
        const uint32_t single = LoadSingles(singles + 4 * i);
        v[2 * i] = LookUp(nibble, static_cast<__mmask16>(single), low, high);
        v[2 * i + 1] =
            LookUp(_mm512_srli_epi32(nibble, 4), static_cast<__mmask16>(single >> 16), low, high);
      }
      break;
    }
    case 4: {
      const __m512 table = Dequantize(all, zero, scale);
      NIBBLE_UNROLL for (int i = 0; i < kBlocks; ++i) {
        const __m512i nibble = LoadNibbles(nibbles + 16 * i);
        v[2 * i] = _mm512_permutexvar_ps(nibble, table);
        v[2 * i + 1] = _mm512_permutexvar_ps(_mm512_srli_epi32(nibble, 4), table);
      }
      break;
    }
    case 3: {
      const __m512 low = Dequantize(all4, zero, scale);
      const __m512 high = Dequantize(_mm512_add_epi32(all4, _mm512_set1_epi32(4)), zero, scale);
      NIBBLE_UNROLL for (int i = 0; i < kBlocks; ++i) {
        const __m512i pair = LoadPairs(pairs + 8 * i);
        const uint32_t single = LoadSingles(singles + 4 * i);
        v[2 * i] = LookUp(FirstPairs(pair), static_cast<__mmask16>(single), low, high);
        v[2 * i + 1] = LookUp(LastPairs(pair), static_cast<__mmask16>(single >> 16), low, high);
      }
      break;
    }
    default: {
      const __m512 table = Dequantize(all4, zero, scale);
      NIBBLE_UNROLL for (int i = 0; i < kBlocks; ++i) {
        const __m512i pair = LoadPairs(pairs + 8 * i);
        v[2 * i] = _mm512_permutexvar_ps(FirstPairs(pair), table);
        v[2 * i + 1] = _mm512_permutexvar_ps(LastPairs(pair), table);
      }
    }
  }
}

}  // namespace nibble::comm::avx512vnni
