// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A group has more registers than there are: it lies in the first-level cache and is passed over
// twice, for its range and for its codes, a block of 32 values at a time.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "comm/codec/codec_kernels.h"
#include "comm/codec/codec_metadata.h"
#include "comm/codec/codec_planes_avx2.h"
#include "comm/codec/codec_scale.h"

namespace nibble::comm::avx2 {
namespace {

// ---------------------------------------------------------------------------------------------
// Floats to codes.

struct Range {
  float low;
  float high;
  bool nan;
};

float Greatest(__m256 x) {
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

// Of the values and `start`. With NaN among the values only `nan` counts.
Range RangeOf(int size, const float* x, float start) {
  __m256 low = _mm256_set1_ps(start);
  __m256 high = low;
  __m256 nan = _mm256_setzero_ps();
  for (int i = 0; i < size; i += 16) {
    const __m256 a = _mm256_loadu_ps(x + i);
    const __m256 b = _mm256_loadu_ps(x + i + 8);
    low = _mm256_min_ps(low, _mm256_min_ps(a, b));
    high = _mm256_max_ps(high, _mm256_max_ps(a, b));
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
  }
  const __m256 minus = _mm256_set1_ps(-0.0F);
  return {-Greatest(_mm256_xor_ps(low, minus)), Greatest(high), _mm256_movemask_ps(nan) != 0};
}

void Clip(int size, float* x, float limit) {
  for (int i = 0; i < size; i += 8) {
    const __m256 low = _mm256_max_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(-limit));
    _mm256_storeu_ps(x + i, _mm256_min_ps(low, _mm256_set1_ps(limit)));
  }
}

// As the reference: scaled, then distances 1, 2, 4 ...
void Rotate(int size, float* x) {
  const __m256 scale = _mm256_set1_ps(RotationScale(size));
  const __m256 minus1 = _mm256_setr_ps(0.0F, -0.0F, 0.0F, -0.0F, 0.0F, -0.0F, 0.0F, -0.0F);
  const __m256 minus2 = _mm256_setr_ps(0.0F, 0.0F, -0.0F, -0.0F, 0.0F, 0.0F, -0.0F, -0.0F);
  const __m256 minus4 = _mm256_setr_ps(0.0F, 0.0F, 0.0F, 0.0F, -0.0F, -0.0F, -0.0F, -0.0F);
  // The other one of a pair plus this one, which the upper one has negative.
  for (int i = 0; i < size; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale);
    v = _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_xor_ps(v, minus1));
    v = _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_xor_ps(v, minus2));
    v = _mm256_add_ps(_mm256_permute2f128_ps(v, v, 1), _mm256_xor_ps(v, minus4));
    _mm256_storeu_ps(x + i, v);
  }
  for (int distance = 8; distance < size; distance *= 2) {
    for (int i = 0; i < size; i += 8) {
      if ((i & distance) != 0) continue;
      const __m256 a = _mm256_loadu_ps(x + i);
      const __m256 b = _mm256_loadu_ps(x + i + distance);
      _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
      _mm256_storeu_ps(x + i + distance, _mm256_sub_ps(a, b));
    }
  }
}

// Writes the least and the greatest value, the first of those that are equal, and leaves zeros in
// their place.
void TakeSpikes(const GroupLayout& layout, float* x, int64_t group, uint8_t* out) {
  const Range range = RangeOf(layout.group_size, x, x[0]);
  const float ends[2] = {range.low, range.high};
  int indices[2];
  for (int i = 0; i < 2; ++i) {
    const __m256 end = _mm256_set1_ps(ends[i]);
    int at = 0;
    int found = 0;
    for (; found == 0; at += 8) {
      found = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + at), end, _CMP_EQ_OQ));
    }
    indices[i] = at - 8 + __builtin_ctz(static_cast<unsigned>(found));
    StoreSpike(layout, {ends[i], indices[i]}, group, i, out);
  }
  for (const int index : indices) x[index] = 0.0F;
}

// x / scale + zero rounded to whole numbers, which the low halves of 32 bits then hold; a block of
// them made bytes with saturation.
__m256i QuantizeBytes(const float* x, __m256 inverse, __m256 rounder) {
  __m256i q[4];
  for (int i = 0; i < 4; ++i) {
    q[i] = _mm256_castps_si256(_mm256_fmadd_ps(_mm256_loadu_ps(x + 8 * i), inverse, rounder));
  }
  const __m256i words02 = _mm256_blend_epi16(q[0], _mm256_slli_epi32(q[2], 16), 0xaa);
  const __m256i words13 = _mm256_blend_epi16(q[1], _mm256_slli_epi32(q[3], 16), 0xaa);
  // A 16-byte lane: 4 times q0, q2, then 4 times q1, q3.
  const __m256i bytes = _mm256_packus_epi16(words02, words13);
  const __m256i by_register =
      _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                     0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
  return _mm256_permutevar8x32_epi32(by_register, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <int kBits>
void QuantizeGroup(const GroupLayout& layout, const float* x, const GroupScale& scale,
                   int64_t group, uint8_t* out) {
  const __m256 inverse = _mm256_set1_ps(scale.inverse);
  const __m256 rounder = _mm256_set1_ps(kRounder + scale.zero);
  const __m256i levels = _mm256_set1_epi8(static_cast<char>((1 << kBits) - 1));
  const int blocks = layout.group_size / 32;
  for (int block = 0; block < blocks; ++block) {
    const __m256i codes = QuantizeBytes(x + 32 * block, inverse, rounder);
    StoreCodes<kBits>(layout, _mm256_min_epu8(codes, levels), group * blocks + block, out);
  }
}

// Values that are in range, spikes taken.
void QuantizeGroup(const GroupLayout& layout, const float* x, const GroupScale& scale,
                   int64_t group, uint8_t* out) {
  StoreScale(layout, scale.code, static_cast<int>(scale.zero), group, out);
  switch (layout.bits) {
    case 8:
      return QuantizeGroup<8>(layout, x, scale, group, out);
    case 6:
      return QuantizeGroup<6>(layout, x, scale, group, out);
    case 5:
      return QuantizeGroup<5>(layout, x, scale, group, out);
    case 4:
      return QuantizeGroup<4>(layout, x, scale, group, out);
    case 3:
      return QuantizeGroup<3>(layout, x, scale, group, out);
    default:
      return QuantizeGroup<2>(layout, x, scale, group, out);
  }
}

void EncodeNan(const GroupLayout& layout, int64_t group, uint8_t* out) {
  const float zeros[kMaxGroupSize] = {};
  const uint16_t code = layout.log2_scales ? kNanLog2 : kNanBf16;
  QuantizeGroup(layout, zeros, {.code = code}, group, out);
  if (layout.spikes) StoreNanSpikes(layout, group, out);
}

void EncodeGroup(const GroupLayout& layout, bool rotate, const float* x, int64_t group,
                 uint8_t* out) {
  const int size = layout.group_size;
  const float limit = rotate ? kLargestRotated : kLargest;
  constexpr float kMax = 0x1.fffffep127F;
  Range range = RangeOf(size, x, 0.0F);
  if (range.nan || range.low < -kMax || range.high > kMax) return EncodeNan(layout, group, out);
  const bool clip = range.low < -limit || range.high > limit;
  alignas(32) float values[kMaxGroupSize];
  if (clip || rotate || layout.spikes) {
    for (int i = 0; i < size; i += 8) _mm256_store_ps(values + i, _mm256_loadu_ps(x + i));
    if (clip) Clip(size, values, limit);
    if (rotate) Rotate(size, values);
    if (layout.spikes) TakeSpikes(layout, values, group, out);
    range = RangeOf(size, values, 0.0F);
    x = values;
  }
  QuantizeGroup(layout, x, ScaleOf(range.low, range.high, layout.bits, layout.log2_scales), group,
                out);
}

// ---------------------------------------------------------------------------------------------
// Codes to floats.

template <int kBits>
void DequantizeGroup(const GroupLayout& layout, const uint8_t* in, int64_t group, float scale,
                     int zero, float* x) {
  const __m256 scales = _mm256_set1_ps(scale);
  const __m256i zeros = _mm256_set1_epi32(zero);
  const int blocks = layout.group_size / 32;
  for (int block = 0; block < blocks; ++block) {
    const __m256i codes = LoadCodes<kBits>(layout, in, group * blocks + block);
    const __m128i halves[2] = {_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)};
    for (int i = 0; i < 4; ++i) {
      const __m128i half = halves[i / 2];
      const __m256i q = _mm256_cvtepu8_epi32(i % 2 == 0 ? half : _mm_srli_si128(half, 8));
      _mm256_storeu_ps(x + 32 * block + 8 * i,
                       _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(q, zeros)), scales));
    }
  }
}

void DecodeGroup(const GroupLayout& layout, const uint8_t* in, int64_t group, float* x) {
  const float scale = LoadScale(layout, in, group);
  const int zero = in[layout.zeros + group];
  switch (layout.bits) {
    case 8:
      DequantizeGroup<8>(layout, in, group, scale, zero, x);
      break;
    case 6:
      DequantizeGroup<6>(layout, in, group, scale, zero, x);
      break;
    case 5:
      DequantizeGroup<5>(layout, in, group, scale, zero, x);
      break;
    case 4:
      DequantizeGroup<4>(layout, in, group, scale, zero, x);
      break;
    case 3:
      DequantizeGroup<3>(layout, in, group, scale, zero, x);
      break;
    default:
      DequantizeGroup<2>(layout, in, group, scale, zero, x);
  }
  if (!layout.spikes) return;
  for (int i = 0; i < 2; ++i) {
    const Spike spike = LoadSpike(layout, in, group, i);
    x[spike.index] = spike.value;
  }
}

void SumGroup(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
              int64_t group, float* sums) {
  DecodeGroup(layout, pieces[0], group, sums);
  for (int piece = 1; piece < num_pieces; ++piece) {
    alignas(32) float values[kMaxGroupSize];
    DecodeGroup(layout, pieces[piece], group, values);
    for (int i = 0; i < layout.group_size; i += 8) {
      _mm256_storeu_ps(sums + i,
                       _mm256_add_ps(_mm256_loadu_ps(sums + i), _mm256_load_ps(values + i)));
    }
  }
}

// ---------------------------------------------------------------------------------------------
// bf16 and float32, 8 values at a time.

__m256 LoadValues(int bits, const uint8_t* in, int64_t i) {
  if (bits == 32) return _mm256_loadu_ps(reinterpret_cast<const float*>(in + 4 * i));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(LoadBytes16(in + 2 * i)), 16));
}

void StoreValues(int bits, __m256 x, int64_t i, uint8_t* out) {
  if (bits == 32) return _mm256_storeu_ps(reinterpret_cast<float*>(out + 4 * i), x);
  const __m256i word = _mm256_castps_si256(x);
  const __m256i high = _mm256_srli_epi32(word, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(word, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i halves = _mm256_blendv_epi8(rounded, quiet, nan);
  StoreBytes16(out + 2 * i, _mm_packus_epi32(_mm256_castsi256_si128(halves),
                                             _mm256_extracti128_si256(halves, 1)));
}

__m256 SumValues(int bits, const uint8_t* const* pieces, int num_pieces, int64_t i) {
  __m256 sum = LoadValues(bits, pieces[0], i);
  for (int piece = 1; piece < num_pieces; ++piece) {
    sum = _mm256_add_ps(sum, LoadValues(bits, pieces[piece], i));
  }
  return sum;
}

}  // namespace

void EncodeGroups(const GroupLayout& layout, const float* x, int64_t first, int64_t count,
                  uint8_t* out) {
  const int64_t size = layout.group_size;
  if (layout.bits > 8) {
    const int bits = layout.bits;
    for (int64_t i = 0; i < count * size; i += 8) {
      StoreValues(bits, _mm256_loadu_ps(x + i), first * size + i, out);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    EncodeGroup(layout, layout.rotation, x + i * size, first + i, out);
  }
}

void DecodeGroups(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
                  int64_t first, int64_t count, float* x) {
  const int64_t size = layout.group_size;
  if (layout.bits > 8) {
    for (int64_t i = 0; i < count * size; i += 8) {
      _mm256_storeu_ps(x + i, SumValues(layout.bits, pieces, num_pieces, first * size + i));
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    SumGroup(layout, pieces, num_pieces, first + i, x + i * size);
    if (layout.rotation) Rotate(layout.group_size, x + i * size);
  }
}

void ReduceGroups(const GroupLayout& layout, const uint8_t* const* pieces, int num_pieces,
                  int64_t count, uint8_t* out) {
  const int64_t size = layout.group_size;
  if (layout.bits > 8) {
    const int bits = layout.bits;
    for (int64_t i = 0; i < count * size; i += 8) {
      StoreValues(bits, SumValues(bits, pieces, num_pieces, i), i, out);
    }
    return;
  }
  for (int64_t group = 0; group < count; ++group) {
    alignas(32) float sums[kMaxGroupSize];
    SumGroup(layout, pieces, num_pieces, group, sums);
    EncodeGroup(layout, false, sums, group, out);
  }
}

}  // namespace nibble::comm::avx2
