// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A group is 2, 4 or 8 registers of 16 values, from the floats to the planes and back: nothing goes
// through memory on the way.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "comm/codec/codec_kernels.h"
#include "comm/codec/codec_scale.h"

namespace nibble::comm::avx512vnni {
namespace {

// Loops over the registers of a group must be unrolled, or the group lives on the stack.
#define NIBBLE_UNROLL _Pragma("GCC unroll 8")

// ---------------------------------------------------------------------------------------------
// Codes to planes. `codes` are bytes in their order, 64 to a register.

// 16-byte lanes hold half a block each: byte j of an even lane and byte j of the odd one after it,
// moved up by 4 bits, are one byte of the result, in which the lanes lie one after the other.
inline __m512i JoinHalves(__m512i codes0, __m512i codes1) {
  const __m512i even = _mm512_shuffle_i64x2(codes0, codes1, 0x88);
  const __m512i odd = _mm512_shuffle_i64x2(codes0, codes1, 0xdd);
  return _mm512_or_si512(even, _mm512_slli_epi16(odd, 4));
}

// The first 16 * kBlocks bytes.
template <int kBlocks>
inline void StoreNibbles(uint8_t* out, __m512i bytes) {
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
inline void StorePairs(uint8_t* out, __m512i codes0, __m512i codes1) {
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
inline void StoreSingles(uint8_t* out, __m512i codes0, __m512i codes1, int bit) {
  const __m512i mask = _mm512_set1_epi8(static_cast<char>(bit));
  const uint64_t low = _mm512_test_epi8_mask(codes0, mask);
  __builtin_memcpy(out, &low, kBlocks == 1 ? 4 : 8);
  if constexpr (kBlocks == 4) {
    const uint64_t high = _mm512_test_epi8_mask(codes1, mask);
    __builtin_memcpy(out + 8, &high, 8);
  }
}

template <int kBlocks>
inline void StorePlanes(const GroupLayout& layout, __m512i codes0, __m512i codes1, int64_t group,
                        uint8_t* out) {
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

// ---------------------------------------------------------------------------------------------
// Floats to codes.

// x * inverse + zero rounded to whole numbers, which the low halves of 32 bits then hold; all four
// made bytes with saturation, in the order of the values.
inline __m512i QuantizeBytes(__m512 v0, __m512 v1, __m512 v2, __m512 v3, __m512 inverse,
                             __m512 rounder) {
  const __m512i q0 = _mm512_castps_si512(_mm512_fmadd_ps(v0, inverse, rounder));
  const __m512i q1 = _mm512_castps_si512(_mm512_fmadd_ps(v1, inverse, rounder));
  const __m512i q2 = _mm512_castps_si512(_mm512_fmadd_ps(v2, inverse, rounder));
  const __m512i q3 = _mm512_castps_si512(_mm512_fmadd_ps(v3, inverse, rounder));
  const __m512i words02 = _mm512_mask_blend_epi16(0xaaaaaaaaU, q0, _mm512_slli_epi32(q2, 16));
  const __m512i words13 = _mm512_mask_blend_epi16(0xaaaaaaaaU, q1, _mm512_slli_epi32(q3, 16));
  // A 16-byte lane: 4 times v0, v2, then 4 times v1, v3.
  const __m512i bytes = _mm512_packus_epi16(words02, words13);
  const __m512i by_register = _mm512_shuffle_epi8(
      bytes,
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
  return _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), by_register);
}

struct Range {
  float low;   // <= 0
  float high;  // >= 0
  bool nan;
};

// The least and the greatest value, 0 among them. With NaN among the values only `nan` counts.
template <int kVecs>
inline Range RangeOf(const __m512 (&v)[kVecs]) {
  __m512 low = _mm512_min_ps(_mm512_setzero_ps(), v[0]);
  __m512 high = _mm512_max_ps(_mm512_setzero_ps(), v[0]);
  __mmask16 nan = _mm512_cmp_ps_mask(v[0], v[1], _CMP_UNORD_Q);
  NIBBLE_UNROLL for (int i = 1; i < kVecs; ++i) {
    low = _mm512_min_ps(low, v[i]);
    high = _mm512_max_ps(high, v[i]);
  }
  NIBBLE_UNROLL for (int i = 2; i < kVecs; i += 2) {
    nan = static_cast<__mmask16>(nan | _mm512_cmp_ps_mask(v[i], v[i + 1], _CMP_UNORD_Q));
  }
  // Both at once: the greatest of -low in the upper half, that of high in the lower.
  const __m512 negative = _mm512_sub_ps(_mm512_setzero_ps(), low);
  const __m512 ends = _mm512_max_ps(_mm512_shuffle_f32x4(high, negative, 0x44),
                                    _mm512_shuffle_f32x4(high, negative, 0xee));
  __m512 most = _mm512_max_ps(ends, _mm512_shuffle_f32x4(ends, ends, 0xb1));
  most = _mm512_max_ps(most, _mm512_permute_ps(most, 0x4e));
  most = _mm512_max_ps(most, _mm512_permute_ps(most, 0xb1));
  return {-_mm256_cvtss_f32(_mm512_extractf32x8_ps(most, 1)), _mm512_cvtss_f32(most), nan != 0};
}

template <int kVecs>
inline void Clip(__m512 (&v)[kVecs], float limit) {
  NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
    v[i] = _mm512_min_ps(_mm512_max_ps(v[i], _mm512_set1_ps(-limit)), _mm512_set1_ps(limit));
  }
}

// v[i] of lane l is value 16 i + l. As the reference: scaled, then distances 1, 2, 4 ...
template <int kVecs>
inline void Rotate(__m512 (&v)[kVecs]) {
  const __m512 scale = _mm512_set1_ps(RotationScale(16 * kVecs));
  // In a register: the other one of a pair plus this one, which the upper one has negative.
  const __m512 minus = _mm512_set1_ps(-0.0F);
  NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
    __m512 x = _mm512_mul_ps(v[i], scale);
    x = _mm512_add_ps(_mm512_permute_ps(x, 0xb1), _mm512_mask_xor_ps(x, 0xaaaa, x, minus));
    x = _mm512_add_ps(_mm512_permute_ps(x, 0x4e), _mm512_mask_xor_ps(x, 0xcccc, x, minus));
    x = _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0xb1), _mm512_mask_xor_ps(x, 0xf0f0, x, minus));
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, x, 0x4e), _mm512_mask_xor_ps(x, 0xff00, x, minus));
  }
  NIBBLE_UNROLL for (int distance = 1; distance < kVecs; distance *= 2) {
    NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
      if ((i & distance) != 0) continue;
      const __m512 sum = _mm512_add_ps(v[i], v[i + distance]);
      const __m512 difference = _mm512_sub_ps(v[i], v[i + distance]);
      v[i] = sum;
      v[i + distance] = difference;
    }
  }
}

inline void StoreScale(const GroupLayout& layout, uint16_t code, int zero, int64_t group,
                       uint8_t* out) {
  if (layout.log2_scales) {
    out[layout.scales + group] = static_cast<uint8_t>(code);
  } else {
    __builtin_memcpy(out + layout.scales + 2 * group, &code, 2);
  }
  out[layout.zeros + group] = static_cast<uint8_t>(zero);
}

struct Spike {
  uint16_t value;
  int index;
};
inline void StoreSpikes(const GroupLayout& layout, Spike least, Spike greatest, int64_t group,
                        uint8_t* out) {
  __builtin_memcpy(out + layout.spike_values + 4 * group, &least.value, 2);
  __builtin_memcpy(out + layout.spike_values + 4 * group + 2, &greatest.value, 2);
  out[layout.spike_indices + 2 * group] = static_cast<uint8_t>(least.index);
  out[layout.spike_indices + 2 * group + 1] = static_cast<uint8_t>(greatest.index);
}

// The first of the values that equal `value`.
template <int kVecs>
inline Spike FindSpike(const __m512 (&v)[kVecs], float value) {
  Spike spike{};
  for (int i = kVecs - 1; i >= 0; --i) {
    const __mmask16 mask = _mm512_cmp_ps_mask(v[i], _mm512_set1_ps(value), _CMP_EQ_OQ);
    if (mask == 0) continue;
    const int lane = __builtin_ctz(mask);
    // Not `value`: 0 and -0 are equal.
    const __m512 found = _mm512_maskz_compress_ps(static_cast<__mmask16>(1U << lane), v[i]);
    spike = {SpikeCode(_mm512_cvtss_f32(found)), 16 * i + lane};
  }
  return spike;
}

template <int kVecs>
inline void SetValue(__m512 (&v)[kVecs], int index, float value) {
  NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) {
    const auto mask = static_cast<__mmask16>(index / 16 == i ? 1U << (index % 16) : 0U);
    v[i] = _mm512_mask_mov_ps(v[i], mask, _mm512_set1_ps(value));
  }
}

// Writes the least and the greatest value and leaves zeros in their place.
template <int kVecs>
inline void TakeSpikes(const GroupLayout& layout, __m512 (&v)[kVecs], int64_t group, uint8_t* out) {
  __m512 low = v[0];
  __m512 high = v[0];
  for (int i = 1; i < kVecs; ++i) {
    low = _mm512_min_ps(low, v[i]);
    high = _mm512_max_ps(high, v[i]);
  }
  const Spike least = FindSpike(v, _mm512_reduce_min_ps(low));
  const Spike greatest = FindSpike(v, _mm512_reduce_max_ps(high));
  StoreSpikes(layout, least, greatest, group, out);
  SetValue(v, least.index, 0.0F);
  SetValue(v, greatest.index, 0.0F);
}

template <int kVecs>
[[gnu::noinline, gnu::cold]] void EncodeNan(const GroupLayout& layout, int64_t group,
                                            uint8_t* out) {
  StorePlanes<kVecs / 2>(layout, _mm512_setzero_si512(), _mm512_setzero_si512(), group, out);
  StoreScale(layout, layout.log2_scales ? kNanLog2 : kNanBf16, 0, group, out);
  if (layout.spikes) StoreSpikes(layout, {kNanBf16, 0}, {kNanBf16, 0}, group, out);
}

template <int kVecs>
inline void EncodeGroup(const GroupLayout& layout, bool rotate, __m512 (&v)[kVecs], int64_t group,
                        uint8_t* out) {
  Range range = RangeOf(v);
  const float limit = rotate ? kLargestRotated : kLargest;
  if (range.nan || range.low < -limit || range.high > limit) [[unlikely]] {
    if (range.nan || range.low < -0x1.fffffep127F || range.high > 0x1.fffffep127F) {
      return EncodeNan<kVecs>(layout, group, out);
    }
    Clip(v, limit);
    range = RangeOf(v);
  }
  if (rotate || layout.spikes) {
    if (rotate) Rotate(v);
    if (layout.spikes) TakeSpikes(layout, v, group, out);
    range = RangeOf(v);
  }
  const GroupScale scale = ScaleOf(range.low, range.high, layout.bits, layout.log2_scales);
  StoreScale(layout, scale.code, static_cast<int>(scale.zero), group, out);
  const __m512 inverse = _mm512_set1_ps(scale.inverse);
  const __m512 rounder = _mm512_set1_ps(kRounder + scale.zero);
  const __m512i levels = _mm512_set1_epi8(static_cast<char>((1 << layout.bits) - 1));
  __m512i codes[2];
  if constexpr (kVecs == 2) {
    codes[0] = QuantizeBytes(v[0], v[1], v[0], v[1], inverse, rounder);
  } else {
    codes[0] = QuantizeBytes(v[0], v[1], v[2], v[3], inverse, rounder);
  }
  codes[1] = codes[0];
  if constexpr (kVecs == 8) codes[1] = QuantizeBytes(v[4], v[5], v[6], v[7], inverse, rounder);
  StorePlanes<kVecs / 2>(layout, _mm512_min_epu8(codes[0], levels),
                         _mm512_min_epu8(codes[1], levels), group, out);
}

// ---------------------------------------------------------------------------------------------
// Planes to floats.

inline __m512i LoadNibbles(const uint8_t* block) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
}

// Bytes of 4 values each, twice: a shift by 0 and 2 gives the block's values 0..15, by 4 and 6 the
// others.
inline __m512i LoadPairs(const uint8_t* block) {
  return _mm512_cvtepu8_epi32(
      _mm_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(block))));
}
inline __m512i FirstPairs(__m512i bytes) {
  return _mm512_srlv_epi32(bytes,
                           _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2));
}
inline __m512i LastPairs(__m512i bytes) {
  return _mm512_srlv_epi32(bytes,
                           _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 6, 6, 6, 6, 6, 6, 6, 6));
}

inline uint32_t LoadSingles(const uint8_t* block) {
  uint32_t bits;
  __builtin_memcpy(&bits, block, 4);
  return bits;
}

inline __m512 Dequantize(__m512i codes, __m512i zero, __m512 scale) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero)), scale);
}

// One of 32 values: the lower table where `upper` has no bit. Only the low 4 bits of an index
// count.
inline __m512 LookUp(__m512i index, __mmask16 upper, __m512 low_table, __m512 high_table) {
  return _mm512_mask_permutexvar_ps(_mm512_permutexvar_ps(index, low_table), upper, index,
                                    high_table);
}

template <int kVecs>
inline void DecodeGroup(const GroupLayout& layout, const uint8_t* in, int64_t group,
                        __m512 (&v)[kVecs]) {
  constexpr int kBlocks = kVecs / 2;
  const uint8_t* const nibbles = in + layout.nibbles + group * (16 * kBlocks);
  const uint8_t* const pairs = in + layout.pairs + group * (8 * kBlocks);
  const uint8_t* const singles = in + layout.singles + group * (4 * kBlocks);
  uint16_t code;
  if (layout.log2_scales) {
    code = in[layout.scales + group];
  } else {
    __builtin_memcpy(&code, in + layout.scales + 2 * group, 2);
  }
  const __m512 scale = _mm512_set1_ps(ScaleOfCode(code, layout.log2_scales));
  const __m512i zero = _mm512_set1_epi32(in[layout.zeros + group]);
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
  if (!layout.spikes) return;
  for (int i = 0; i < 2; ++i) {
    uint16_t value;
    __builtin_memcpy(&value, in + layout.spike_values + 4 * group + 2 * i, 2);
    SetValue(v, in[layout.spike_indices + 2 * group + i] % (16 * kVecs), SpikeOfCode(value));
  }
}

template <int kVecs>
inline void SumGroup(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
                     int64_t group, __m512 (&sums)[kVecs]) {
  DecodeGroup(layout, pieces[0], group, sums);
  for (int piece = 1; piece < num_pieces; ++piece) {
    __m512 v[kVecs];
    DecodeGroup(layout, pieces[piece], group, v);
    NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) sums[i] = _mm512_add_ps(sums[i], v[i]);
  }
}

// ---------------------------------------------------------------------------------------------
// The loops over groups. They take the layout by value: the bytes that they write may not alias it.

template <int kVecs>
void EncodeAll(GroupLayout layout, const float* x, int64_t first, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    __m512 v[kVecs];
    NIBBLE_UNROLL for (int j = 0; j < kVecs; ++j) {
      v[j] = _mm512_loadu_ps(x + (i * kVecs + j) * 16);
    }
    EncodeGroup(layout, layout.rotation, v, first + i, out);
  }
}

template <int kVecs>
void DecodeAll(GroupLayout layout, const uint8_t* const* pieces, int num_pieces, int64_t first,
               int64_t count, float* x) {
  for (int64_t i = 0; i < count; ++i) {
    __m512 v[kVecs];
    SumGroup(layout, pieces, num_pieces, first + i, v);
    if (layout.rotation) Rotate(v);
    NIBBLE_UNROLL for (int j = 0; j < kVecs; ++j) {
      _mm512_storeu_ps(x + (i * kVecs + j) * 16, v[j]);
    }
  }
}

template <int kVecs>
void ReduceAll(GroupLayout layout, const uint8_t* const* pieces, int num_pieces, int64_t count,
               uint8_t* out) {
  for (int64_t group = 0; group < count; ++group) {
    __m512 v[kVecs];
    SumGroup(layout, pieces, num_pieces, group, v);
    EncodeGroup(layout, false, v, group, out);
  }
}

// bf16 and float32, 16 values at a time.

inline __m512 LoadValues(int bits, const uint8_t* in, int64_t i) {
  if (bits == 32) return _mm512_loadu_ps(in + 4 * i);
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + 2 * i));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void StoreValues(int bits, __m512 x, int64_t i, uint8_t* out) {
  if (bits == 32) return _mm512_storeu_ps(out + 4 * i, x);
  const __m512i word = _mm512_castps_si512(x);
  const __m512i high = _mm512_srli_epi32(word, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i halves = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * i), _mm512_cvtepi32_epi16(halves));
}

inline __m512 SumValues(int bits, const uint8_t* const* pieces, int num_pieces, int64_t i) {
  __m512 sum = LoadValues(bits, pieces[0], i);
  for (int piece = 1; piece < num_pieces; ++piece) {
    sum = _mm512_add_ps(sum, LoadValues(bits, pieces[piece], i));
  }
  return sum;
}

}  // namespace

void EncodeGroups(const GroupLayout& layout, const float* x, int64_t first, int64_t count,
                  uint8_t* out) {
  const int64_t size = layout.group_size;
  if (layout.bits > 8) {
    const int bits = layout.bits;
    for (int64_t i = 0; i < count * size; i += 16) {
      StoreValues(bits, _mm512_loadu_ps(x + i), first * size + i, out);
    }
    return;
  }
  if (size == 128) return EncodeAll<8>(layout, x, first, count, out);
  if (size == 64) return EncodeAll<4>(layout, x, first, count, out);
  EncodeAll<2>(layout, x, first, count, out);
}

void DecodeGroups(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
                  int64_t first, int64_t count, float* x) {
  const int64_t size = layout.group_size;
  if (layout.bits > 8) {
    for (int64_t i = 0; i < count * size; i += 16) {
      _mm512_storeu_ps(x + i, SumValues(layout.bits, pieces, num_pieces, first * size + i));
    }
    return;
  }
  if (size == 128) return DecodeAll<8>(layout, pieces, num_pieces, first, count, x);
  if (size == 64) return DecodeAll<4>(layout, pieces, num_pieces, first, count, x);
  DecodeAll<2>(layout, pieces, num_pieces, first, count, x);
}

void ReduceGroups(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
                  int64_t count, uint8_t* out) {
  const int64_t size = layout.group_size;
  if (layout.bits > 8) {
    const int bits = layout.bits;
    for (int64_t i = 0; i < count * size; i += 16) {
      StoreValues(bits, SumValues(bits, pieces, num_pieces, i), i, out);
    }
    return;
  }
  if (size == 128) return ReduceAll<8>(layout, pieces, num_pieces, count, out);
  if (size == 64) return ReduceAll<4>(layout, pieces, num_pieces, count, out);
  ReduceAll<2>(layout, pieces, num_pieces, count, out);
}

}  // namespace nibble::comm::avx512vnni
