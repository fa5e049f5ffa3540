// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/attention/attention_tile.h"
#include "kernels/device/math_avx2.h"

// The operations of the AVX-512 variant in the same order, so that the results are its to the bit.
namespace nibble::kernels::avx2 {
namespace {

constexpr int kLanes = 8;
constexpr int kVectors = kTileKeys / kLanes;

// Columns [column, column + 8) of a row of head_dim elements as floats, 0 past its end.
template <KvElement kElement>
inline __m256 LoadFloats(const void* row, int64_t column, int64_t head_dim) {
  const int64_t count = head_dim - column;
  if constexpr (kElement == KvElement::kF32) {
    return _mm256_maskload_ps(static_cast<const float*>(row) + column, FirstLanes(count));
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(row) + column;
    __m128i bits;
    if (count >= kLanes) {
      bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    } else {
      alignas(16) uint16_t tail[kLanes] = {};
      for (int64_t i = 0; i < count; ++i) tail[i] = from[i];
      bits = _mm_load_si128(reinterpret_cast<const __m128i*>(tail));
    }
    if constexpr (kElement == KvElement::kF16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
}

inline __m256 LowPairs(__m256 a, __m256 b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
inline __m256 HighPairs(__m256 a, __m256 b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}

// 8 x 8 floats: rows become columns.
inline void Transpose(__m256 (&rows)[8]) {
  __m256 quads[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256 low0 = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    const __m256 high0 = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    const __m256 low1 = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]);
    const __m256 high1 = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
    quads[i] = LowPairs(low0, low1);
    quads[i + 1] = HighPairs(low0, low1);
    quads[i + 2] = LowPairs(high0, high1);
    quads[i + 3] = HighPairs(high0, high1);
  }
  // quads[4 g + c]: in 128-bit lane l, column 4 l + c of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm256_permute2f128_ps(quads[c], quads[4 + c], 0x20);
    rows[4 + c] = _mm256_permute2f128_ps(quads[c], quads[4 + c], 0x31);
  }
}

template <KvElement kElement>
void PackKeys(const PackTileArgs& args) {
  for (int64_t key = args.key_begin / kLanes * kLanes; key < args.key_end; key += kLanes) {
    for (int64_t column = 0; column < args.head_dim; column += kLanes) {
      __m256 rows[kLanes];
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = LoadFloats<kElement>(args.key_rows[key + i], column, args.head_dim);
      }
      Transpose(rows);
      float* out = args.keys + column * kTileKeys + key;
      if (args.head_dim - column >= kLanes) {
#pragma GCC unroll 8
        for (int i = 0; i < kLanes; ++i) _mm256_storeu_ps(out + i * kTileKeys, rows[i]);
      } else {
        for (int64_t i = 0; i < args.head_dim - column; ++i) {
          _mm256_storeu_ps(out + i * kTileKeys, rows[i]);
        }
      }
    }
  }
}

template <KvElement kElement>
void PackValues(const PackTileArgs& args) {
  for (int64_t key = args.key_begin; key < args.key_end; ++key) {
    float* out = args.values + key * args.padded_dim;
    for (int64_t column = 0; column < args.padded_dim; column += kLanes) {
      _mm256_storeu_ps(out + column,
                       column < args.head_dim
                           ? LoadFloats<kElement>(args.value_rows[key], column, args.head_dim)
                           : _mm256_setzero_ps());
    }
  }
}

// scores[r, j] = q[r] . keys[:, j], for all keys of the tile, 8 accumulators at a time.
template <int kRows>
void Scores(const AttendTileArgs& args, int64_t row, float* scores) {
  constexpr int kWidth = 8 / kRows;
  const float* q = args.q + row * args.head_dim;
  for (int first = 0; first < kVectors; first += kWidth) {
    __m256 sums[kRows][kWidth];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kWidth; ++v) sums[r][v] = _mm256_setzero_ps();
    }
    for (int64_t d = 0; d < args.head_dim; ++d) {
      const float* keys = args.keys + d * kTileKeys + first * kLanes;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256 query = _mm256_set1_ps(q[r * args.head_dim + d]);
#pragma GCC unroll 8
        for (int v = 0; v < kWidth; ++v) {
          sums[r][v] = _mm256_fmadd_ps(query, _mm256_loadu_ps(keys + v * kLanes), sums[r][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kWidth; ++v) {
        _mm256_storeu_ps(scores + r * kTileKeys + (first + v) * kLanes, sums[r][v]);
      }
    }
  }
}

// All bits of the lanes of vector `v` whose key is in [begin, end).
inline __m256 KeyMask(int v, int32_t begin, int32_t end) {
  const __m256i key =
      _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(v * kLanes));
  const __m256i after_begin = _mm256_cmpgt_epi32(key, _mm256_set1_epi32(begin - 1));
  const __m256i before_end = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), key);
  return _mm256_castsi256_ps(_mm256_and_si256(after_begin, before_end));
}

// Turns one row's scores into weights relative to its new maximum and moves its state there.
void UpdateSoftmax(const AttendTileArgs& args, int64_t row, float* scores) {
  const int32_t begin = args.key_begin[row];
  const int32_t end = args.key_end[row];
  const __m256 scale = _mm256_set1_ps(args.scale);
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  __m256 largest = lowest;
  for (int v = 0; v < kVectors; ++v) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(scores + v * kLanes), scale);
    const __m256 score = _mm256_blendv_ps(lowest, scaled, KeyMask(v, begin, end));
    _mm256_storeu_ps(scores + v * kLanes, score);
    largest = _mm256_max_ps(largest, score);
  }
  float& max = args.state.max[row];
  const float tile_max = ReduceMax(largest);
  const float new_max = tile_max > max ? tile_max : max;
  const __m256 offset = _mm256_set1_ps(new_max);
  __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int v = 0; v < kVectors; v += 2) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* lanes = scores + (v + half) * kLanes;
      const __m256 weight = _mm256_and_ps(Exp(_mm256_sub_ps(_mm256_loadu_ps(lanes), offset)),
                                          KeyMask(v + half, begin, end));
      _mm256_storeu_ps(lanes, weight);
      sums[half] = _mm256_add_ps(sums[half], weight);
    }
  }
  const __m256 rescale = Exp(_mm256_set1_ps(max - new_max));
  const float correction = _mm256_cvtss_f32(rescale);
  max = new_max;
  args.state.sum[row] =
      args.state.sum[row] * correction + ReduceAdd(_mm256_add_ps(sums[0], sums[1]));
  if (correction == 1.0F) return;
  float* acc = args.state.acc + row * args.padded_dim;
  for (int64_t column = 0; column < args.padded_dim; column += kLanes) {
    _mm256_storeu_ps(acc + column, _mm256_mul_ps(_mm256_loadu_ps(acc + column), rescale));
  }
}

// acc[r, column ..] += weights[r, j] * values[j, column ..] for j in [begin, end), for kRows rows
// and kColumns vectors.
template <int kRows, int kColumns>
void AccumulateColumns(const AttendTileArgs& args, int64_t row, int64_t column, int64_t begin,
                       int64_t end, const float* weights) {
  float* acc = args.state.acc + row * args.padded_dim + column;
  __m256 sums[kRows][kColumns];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      sums[r][c] = _mm256_loadu_ps(acc + r * args.padded_dim + c * kLanes);
    }
  }
  for (int64_t j = begin; j < end; ++j) {
    const float* values = args.values + j * args.padded_dim + column;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m256 weight = _mm256_set1_ps(weights[r * kTileKeys + j]);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        sums[r][c] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(values + c * kLanes), sums[r][c]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      _mm256_storeu_ps(acc + r * args.padded_dim + c * kLanes, sums[r][c]);
    }
  }
}

template <int kRows>
void Accumulate(const AttendTileArgs& args, int64_t row, int64_t begin, int64_t end,
                const float* weights) {
  if (begin >= end) return;
  constexpr int kWide = 8 / kRows;  // 8 accumulators hide the latency of the additions
  int64_t column = 0;
  for (; column + kWide * kLanes <= args.padded_dim; column += kWide * kLanes) {
    AccumulateColumns<kRows, kWide>(args, row, column, begin, end, weights);
  }
  for (; column < args.padded_dim; column += 2 * kLanes) {
    AccumulateColumns<kRows, 2>(args, row, column, begin, end, weights);
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

}  // namespace nibble::kernels::avx2
