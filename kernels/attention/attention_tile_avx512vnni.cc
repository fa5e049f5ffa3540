// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/attention/attention_tile.h"
#include "kernels/device/math_avx512.h"

namespace nibble::kernels::avx512vnni {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = kTileKeys / kLanes;

template <KvElement kElement>
inline __m512 LoadFloats(const void* row, int64_t column, __mmask16 mask) {
  if constexpr (kElement == KvElement::kF32) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(row) + column);
  } else {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(row) + column);
    if constexpr (kElement == KvElement::kF16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
}

inline __m512 LowPairs(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline __m512 HighPairs(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

// 16 x 16 floats: rows become columns.
inline void Transpose(__m512 (&rows)[16]) {
  __m512 quads[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512 low0 = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    const __m512 high0 = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    const __m512 low1 = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]);
    const __m512 high1 = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
    quads[i] = LowPairs(low0, low1);
    quads[i + 1] = HighPairs(low0, low1);
    quads[i + 2] = LowPairs(high0, high1);
    quads[i + 3] = HighPairs(high0, high1);
  }
  // quads[4 g + c]: in 128-bit lane l, column 4 l + c of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even01 = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    rows[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    rows[8 + c] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    rows[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

template <KvElement kElement>
void PackKeys(const PackTileArgs& args) {
  for (int64_t key = args.key_begin / kLanes * kLanes; key < args.key_end; key += kLanes) {
    for (int64_t column = 0; column < args.head_dim; column += kLanes) {
      const __mmask16 mask = FirstLanes(args.head_dim - column);
      __m512 rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = LoadFloats<kElement>(args.key_rows[key + i], column, mask);
      }
      Transpose(rows);
      float* out = args.keys + column * kTileKeys + key;
      if (args.head_dim - column >= kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) _mm512_storeu_ps(out + i * kTileKeys, rows[i]);
      } else {
        for (int64_t i = 0; i < args.head_dim - column; ++i) {
          _mm512_storeu_ps(out + i * kTileKeys, rows[i]);
        }
      }
    }
  }
}

template <KvElement kElement>
void PackValues(const PackTileArgs& args) {
  for (int64_t key = args.key_begin; key < args.key_end; ++key) {
    for (int64_t column = 0; column < args.padded_dim; column += kLanes) {
      const __mmask16 mask = FirstLanes(args.head_dim - column);
      _mm512_storeu_ps(args.values + key * args.padded_dim + column,
                       LoadFloats<kElement>(args.value_rows[key], column, mask));
    }
  }
}

// scores[r, j] = q[r] . keys[:, j], for all keys of the tile.
template <int kRows>
void Scores(const AttendTileArgs& args, int64_t row, float* scores) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  const float* q = args.q + row * args.head_dim;
  for (int64_t d = 0; d < args.head_dim; ++d) {
    __m512 keys[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      keys[v] = _mm512_loadu_ps(args.keys + d * kTileKeys + v * kLanes);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512 query = _mm512_set1_ps(q[r * args.head_dim + d]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = _mm512_fmadd_ps(query, keys[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(scores + r * kTileKeys + v * kLanes, sums[r][v]);
    }
  }
}

// Turns one row's scores into weights relative to its new maximum and moves its state there.
void UpdateSoftmax(const AttendTileArgs& args, int64_t row, float* scores) {
  const uint64_t end_mask =
      args.key_end[row] >= kTileKeys ? ~uint64_t{0} : (uint64_t{1} << args.key_end[row]) - 1;
  const uint64_t mask = end_mask & (~uint64_t{0} << args.key_begin[row]);
  const __m512 scale = _mm512_set1_ps(args.scale);
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 score[kVectors];
  __m512 largest = lowest;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const auto lanes = static_cast<__mmask16>(mask >> (v * kLanes));
    score[v] = _mm512_mask_mul_ps(lowest, lanes, _mm512_loadu_ps(scores + v * kLanes), scale);
    largest = _mm512_max_ps(largest, score[v]);
  }
  float& max = args.state.max[row];
  const float tile_max = ReduceMax(largest);
  const float new_max = tile_max > max ? tile_max : max;
  const __m512 offset = _mm512_set1_ps(new_max);
  __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const auto lanes = static_cast<__mmask16>(mask >> (v * kLanes));
    const __m512 weight = _mm512_maskz_mov_ps(lanes, Exp(_mm512_sub_ps(score[v], offset)));
    _mm512_storeu_ps(scores + v * kLanes, weight);
    sum = _mm512_add_ps(sum, weight);
  }
  const __m512 rescale = Exp(_mm512_set1_ps(max - new_max));
  const float correction = _mm512_cvtss_f32(rescale);
  max = new_max;
  args.state.sum[row] = args.state.sum[row] * correction + ReduceAdd(sum);
  if (correction == 1.0F) return;
  float* acc = args.state.acc + row * args.padded_dim;
  for (int64_t column = 0; column < args.padded_dim; column += kLanes) {
    _mm512_storeu_ps(acc + column, _mm512_mul_ps(_mm512_loadu_ps(acc + column), rescale));
  }
}

// acc[r, column ..] += weights[r, j] * values[j, column ..] for j in [begin, end), for kRows rows
// and kColumns vectors.
template <int kRows, int kColumns>
void AccumulateColumns(const AttendTileArgs& args, int64_t row, int64_t column, int64_t begin,
                       int64_t end, const float* weights) {
  float* acc = args.state.acc + row * args.padded_dim + column;
  __m512 sums[kRows][kColumns];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      sums[r][c] = _mm512_loadu_ps(acc + r * args.padded_dim + c * kLanes);
    }
  }
  for (int64_t j = begin; j < end; ++j) {
    const float* values = args.values + j * args.padded_dim + column;
    __m512 value[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) value[c] = _mm512_loadu_ps(values + c * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m512 weight = _mm512_set1_ps(weights[r * kTileKeys + j]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        sums[r][c] = _mm512_fmadd_ps(weight, value[c], sums[r][c]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      _mm512_storeu_ps(acc + r * args.padded_dim + c * kLanes, sums[r][c]);
    }
  }
}

template <int kRows>
void Accumulate(const AttendTileArgs& args, int64_t row, int64_t begin, int64_t end,
                const float* weights) {
  if (begin >= end) return;
  int64_t column = 0;
  for (; column + 4 * kLanes <= args.padded_dim; column += 4 * kLanes) {
    AccumulateColumns<kRows, 4>(args, row, column, begin, end, weights);
  }
  if (column + 2 * kLanes <= args.padded_dim) {
    AccumulateColumns<kRows, 2>(args, row, column, begin, end, weights);
    column += 2 * kLanes;
  }
  if (column < args.padded_dim) {
    AccumulateColumns<kRows, 1>(args, row, column, begin, end, weights);
  }
}

template <int kRows>
void AttendRows(const AttendTileArgs& args, int64_t row) {
  // Keys that all rows see are shared; before and after them each row goes alone, so that a key
  // that a row must not see never enters its arithmetic, not even with weight 0.
  int64_t shared_begin = 0;
  int64_t shared_end = kTileKeys;
  bool any = false;
  for (int64_t r = row; r < row + kRows; ++r) {
    if (args.key_begin[r] > shared_begin) shared_begin = args.key_begin[r];
    if (args.key_end[r] < shared_end) shared_end = args.key_end[r];
    any = any || args.key_begin[r] < args.key_end[r];
  }
  if (!any) return;
  alignas(64) float weights[kRows * kTileKeys];
  Scores<kRows>(args, row, weights);
  const bool share = shared_begin < shared_end;
  for (int r = 0; r < kRows; ++r) {
    if (args.key_begin[row + r] >= args.key_end[row + r]) continue;
    UpdateSoftmax(args, row + r, weights + r * kTileKeys);
    Accumulate<1>(args, row + r, args.key_begin[row + r],
                  share ? shared_begin : args.key_end[row + r], weights + r * kTileKeys);
  }
  if (!share) return;
  Accumulate<kRows>(args, row, shared_begin, shared_end, weights);
  for (int r = 0; r < kRows; ++r) {
    Accumulate<1>(args, row + r, shared_end, args.key_end[row + r], weights + r * kTileKeys);
  }
}

}  // namespace

void PackTile(const PackTileArgs& args) {
  switch (args.element) {
    case KvElement::kF32:
      PackKeys<KvElement::kF32>(args);
      PackValues<KvElement::kF32>(args);
      return;
    case KvElement::kBf16:
      PackKeys<KvElement::kBf16>(args);
      PackValues<KvElement::kBf16>(args);
      return;
    case KvElement::kF16:
      PackKeys<KvElement::kF16>(args);
      PackValues<KvElement::kF16>(args);
      return;
  }
}

void AttendTile(const AttendTileArgs& args) {
  int64_t row = 0;
  for (; row + 4 <= args.num_rows; row += 4) AttendRows<4>(args, row);
  if (row + 2 <= args.num_rows) {
    AttendRows<2>(args, row);
    row += 2;
  }
  if (row < args.num_rows) AttendRows<1>(args, row);
}

}  // namespace nibble::kernels::avx512vnni
