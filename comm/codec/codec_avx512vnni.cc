// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A group is 2, 4 or 8 registers of 16 values, from the floats to the planes and back: nothing goes
// through memory on the way.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "comm/codec/codec_group_avx512.h"
#include "comm/codec/codec_kernels.h"
#include "comm/codec/codec_metadata.h"
#include "comm/codec/codec_planes_avx512.h"
#include "comm/codec/codec_scale.h"

namespace nibble::comm::avx512vnni {
namespace {

// ---------------------------------------------------------------------------------------------
// Floats to codes.

// Writes the least and the greatest value and leaves zeros in their place.
template <int kVecs>
inline void TakeSpikes(const GroupLayout& layout, __m512 (&v)[kVecs], int64_t group, uint8_t* out) {
  __m512 low = v[0];
  __m512 high = v[0];
  for (int i = 1; i < kVecs; ++i) {
    low = _mm512_min_ps(low, v[i]);
    high = _mm512_max_ps(high, v[i]);
  }
  const float ends[2] = {_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high)};
  const int indices[2] = {Find(v, ends[0]), Find(v, ends[1])};
  for (int i = 0; i < 2; ++i) StoreSpike(layout, {ends[i], indices[i]}, group, i, out);
  for (const int index : indices) SetValue(v, index, 0.0F);
}

template <int kVecs>
[[gnu::noinline, gnu::cold]] void EncodeNan(const GroupLayout& layout, int64_t group,
                                            uint8_t* out) {
  StorePlanes<kVecs / 2>(layout, _mm512_setzero_si512(), _mm512_setzero_si512(), group, out);
  StoreScale(layout, layout.log2_scales ? kNanLog2 : kNanBf16, 0, group, out);
  if (layout.spikes) StoreNanSpikes(layout, group, out);
}

template <int kVecs>
inline void QuantizeGroup(const GroupLayout& layout, const __m512 (&v)[kVecs], __m512 inverse,
                          __m512 rounder, int64_t group, uint8_t* out) {
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
  QuantizeGroup(layout, v, _mm512_set1_ps(scale.inverse), _mm512_set1_ps(kRounder + scale.zero),
                group, out);
}

// A group alone waits for its range, then for its scale, then for its codes, most of the time for
// all three. 16 groups' scales are computed at once, one to a lane, and nothing waits.
constexpr int kBatch = 16;

template <int kVecs>
inline void LoadGroup(const float* x, __m512 (&v)[kVecs]) {
  NIBBLE_UNROLL for (int i = 0; i < kVecs; ++i) v[i] = _mm512_loadu_ps(x + 16 * i);
}

// Half of a group of the next batch, one for each pass over this one: memory has nothing to do
// while a batch is passed over for the second time.
template <int kVecs, int kHalf>
inline void PrefetchHalf(const float* x) {
  NIBBLE_UNROLL for (int i = kHalf; i < kVecs; i += 2) {
    _mm_prefetch(reinterpret_cast<const char*>(x + 16 * i), _MM_HINT_T0);
  }
}

struct BatchRanges {
  alignas(64) float low[kBatch];
  alignas(64) float high[kBatch];
  bool outside = false;  // some group has NaN or values beyond kLargest

  void Set(int i, const Range& range) {
    low[i] = range.low;
    high[i] = range.high;
    outside |= range.nan || range.low < -kLargest || range.high > kLargest;
  }
};

struct BatchScales {
  alignas(64) float inverse[kBatch];
  alignas(64) float rounder[kBatch];
};

// ScaleOf of each; writes scales and zero points.
inline BatchScales StoreScales(const GroupLayout& layout, const BatchRanges& ranges, int64_t first,
                               uint8_t* out) {
  BatchScales scales;
  if (layout.log2_scales) {
    for (int i = 0; i < kBatch; ++i) {
      const GroupScale scale = ScaleOf(ranges.low[i], ranges.high[i], layout.bits, true);
      StoreScale(layout, scale.code, static_cast<int>(scale.zero), first + i, out);
      scales.inverse[i] = scale.inverse;
      scales.rounder[i] = kRounder + scale.zero;
    }
    return scales;
  }
  const float num_levels = static_cast<float>((1 << layout.bits) - 1);
  const __m512 levels = _mm512_set1_ps(num_levels);
  const __m512 share = _mm512_set1_ps(1.0F / num_levels);
  const __m512 low = _mm512_load_ps(ranges.low);
  const __m512 exact = _mm512_max_ps(
      _mm512_sub_ps(_mm512_mul_ps(_mm512_load_ps(ranges.high), share), _mm512_mul_ps(low, share)),
      _mm512_set1_ps(kSmallestScale));
  const __m512i codes = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_castps_si512(exact), _mm512_set1_epi32(0xff00)), 16);
  const __m512 inverse =
      _mm512_div_ps(_mm512_set1_ps(1.0F), _mm512_castsi512_ps(_mm512_slli_epi32(codes, 16)));
  const __m512 round = _mm512_set1_ps(kRounder);
  const __m512 zero = _mm512_min_ps(
      _mm512_sub_ps(_mm512_sub_ps(round, _mm512_mul_ps(low, inverse)), round), levels);
  _mm512_store_ps(scales.inverse, inverse);
  _mm512_store_ps(scales.rounder, _mm512_add_ps(round, zero));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + layout.scales + 2 * first),
                      _mm512_cvtepi32_epi16(codes));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + layout.zeros + first),
                   _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(zero)));
  return scales;
}

// Groups [first, first + kBatch) of values x that are not rotated and give no spikes. While they
// are made codes, the values of the next batch are fetched: memory is not asked for anything else
// then.
template <int kVecs, bool kPrefetch>
inline void EncodeBatch(const GroupLayout& layout, const BatchRanges& ranges, const float* x,
                        int64_t first, uint8_t* out) {
  if (ranges.outside) [[unlikely]] {
    for (int i = 0; i < kBatch; ++i) {
      __m512 v[kVecs];
      LoadGroup(x + i * (16 * kVecs), v);
      EncodeGroup(layout, false, v, first + i, out);
    }
    return;
  }
  const BatchScales scales = StoreScales(layout, ranges, first, out);
  for (int i = 0; i < kBatch; ++i) {
    __m512 v[kVecs];
    if constexpr (kPrefetch) PrefetchHalf<kVecs, 1>(x + (kBatch + i) * (16 * kVecs));
    LoadGroup(x + i * (16 * kVecs), v);
    QuantizeGroup(layout, v, _mm512_set1_ps(scales.inverse[i]), _mm512_set1_ps(scales.rounder[i]),
                  first + i, out);
  }
}

// ---------------------------------------------------------------------------------------------
// Planes to floats.

template <int kVecs>
[[gnu::always_inline]] inline void DecodeGroup(const GroupLayout& layout, const uint8_t* in,
                                               int64_t group, __m512 (&v)[kVecs]) {
  LoadPlanes(layout, in, group, _mm512_set1_epi32(in[layout.zeros + group]),
             _mm512_set1_ps(LoadScale(layout, in, group)), v);
  if (!layout.spikes) return;
  for (int i = 0; i < 2; ++i) {
    const Spike spike = LoadSpike(layout, in, group, i);
    SetValue(v, spike.index, spike.value);
  }
}

template <int kVecs>
[[gnu::always_inline]] inline void SumGroup(const GroupLayout& layout, const uint8_t* const* pieces,
                                            int num_pieces, int64_t group, __m512 (&sums)[kVecs]) {
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
  constexpr int kSize = 16 * kVecs;
  __m512 v[kVecs];
  int64_t i = 0;
  for (; !layout.rotation && !layout.spikes && i + kBatch <= count; i += kBatch) {
    BatchRanges ranges;
    for (int j = 0; j < kBatch; ++j) {
      PrefetchHalf<kVecs, 0>(x + (i + kBatch + j) * kSize);
      LoadGroup(x + (i + j) * kSize, v);
      ranges.Set(j, RangeOf(v));
    }
    EncodeBatch<kVecs, true>(layout, ranges, x + i * kSize, first + i, out);
  }
  for (; i < count; ++i) {
    LoadGroup(x + i * kSize, v);
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
  constexpr int kSize = 16 * kVecs;
  __m512 v[kVecs];
  int64_t group = 0;
  for (; !layout.spikes && group + kBatch <= count; group += kBatch) {
    alignas(64) float sums[kBatch * kSize];  // in the first-level cache
    BatchRanges ranges;
    for (int j = 0; j < kBatch; ++j) {
      SumGroup(layout, pieces, num_pieces, group + j, v);
      ranges.Set(j, RangeOf(v));
      NIBBLE_UNROLL for (int k = 0; k < kVecs; ++k)
          _mm512_store_ps(sums + j * kSize + 16 * k, v[k]);
    }
    EncodeBatch<kVecs, false>(layout, ranges, sums, group, out);
  }
  for (; group < count; ++group) {
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
