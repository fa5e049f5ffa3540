// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// attention_tile.h once, over the vectors of an instruction set (attention_simd_*.h). Everything is
// static: the sources that include this must not emit symbols that the linker could choose for
// other CPUs.
#pragma once

#include <cstdint>

#include "kernels/attention/attention_tile.h"

// Loops over registers must be unrolled, or the registers become memory.
#define NIBBLE_ATTENTION_UNROLL _Pragma("GCC unroll 8")

namespace nibble::kernels {

template <KvElement kElement>
static constexpr int64_t ElementBytes() {
  return kElement == KvElement::kF32 ? 4 : kElement == KvElement::kI8 ? 1 : 2;
}

template <KvElement kElement>
static inline const void* Advance(const void* from, int64_t elements) {
  return static_cast<const char*>(from) + elements * ElementBytes<kElement>();
}

// Asks for the cache line that element `at` of `from` begins, if it begins one.
template <KvElement kElement>
static inline void Fetch(const void* from, int64_t at) {
  if (at % (64 / ElementBytes<kElement>()) == 0) __builtin_prefetch(Advance<kElement>(from, at));
}

// The element at `from` as a float.
template <class Simd, KvElement kElement>
static inline float LoadOne(const void* from) {
  alignas(64) char bytes[16 * ElementBytes<kElement>()] = {};
  __builtin_memcpy(bytes, from, ElementBytes<kElement>());
  alignas(64) float lanes[kStripKeys];
  Simd::Store(lanes, Simd::template LoadAs<kElement>(bytes, 0));
  return lanes[0];
}

template <class Simd, KvElement kElement>
static void PackKeys(const PackTileArgs& args) {
  if (args.whole_strips) {
    for (int64_t key = args.key_begin / kStripKeys * kStripKeys; key < args.key_end;
         key += kStripKeys) {
      // Of the strip's positions that are wanted, the first one's address is known for sure.
      const int64_t known = key < args.key_begin ? args.key_begin : key;
      const void* from = Advance<kElement>(args.rows[known].key, key - known);
      for (int64_t d = 0; d < args.head_dim; ++d) {
        Simd::Store(args.keys + d * kTileKeys + key,
                    Simd::template LoadAs<kElement>(from, d * args.key_stride));
      }
    }
    return;
  }
  for (int64_t key = args.key_begin; key < args.key_end; ++key) {
    for (int64_t d = 0; d < args.head_dim; ++d) {
      args.keys[d * kTileKeys + key] =
          LoadOne<Simd, kElement>(Advance<kElement>(args.rows[key].key, d * args.key_stride));
    }
  }
}

template <class Simd, KvElement kElement>
static void PackValues(const PackTileArgs& args) {
  for (int64_t key = args.key_begin; key < args.key_end; ++key) {
    const void* from = args.rows[key].value;
    float* out = args.values + key * args.padded_dim;
    int64_t d = 0;
    for (; d + kPadColumns <= args.head_dim; d += kPadColumns) {
      Simd::Store(out + d, Simd::template LoadAs<kElement>(from, d));
    }
    for (; d < args.head_dim; ++d) out[d] = LoadOne<Simd, kElement>(Advance<kElement>(from, d));
    for (; d < args.padded_dim; ++d) out[d] = 0.0F;
  }
}

// scores[r, j] = q[r] . keys[:, j] for all keys of strips [first, first + kStrips).
template <class Simd, KvElement kElement, int kRows, int kStrips>
static void ScoreStrips(const AttendTileArgs& args, int64_t row, int64_t first, float* scores) {
  typename Simd::Floats sums[kRows][kStrips];
  NIBBLE_ATTENTION_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_ATTENTION_UNROLL
    for (int s = 0; s < kStrips; ++s) sums[r][s] = Simd::Zero();
  }
  const float* q = args.q + row * args.head_dim;
  const KvStrip* strips = args.strips + first;
  // The first rows ask for the next tile while they work on this one, line for line.
  const KvStrip* next = args.next != nullptr && row == 0 ? args.next + first : nullptr;
  for (int64_t d = 0; d < args.head_dim; ++d) {
    typename Simd::Floats keys[kStrips];
    NIBBLE_ATTENTION_UNROLL
    for (int s = 0; s < kStrips; ++s) {
      if (next != nullptr) Fetch<kElement>(next[s].keys, d * args.key_stride);
      keys[s] = Simd::template LoadAs<kElement>(strips[s].keys, d * args.key_stride);
    }
    NIBBLE_ATTENTION_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const auto query = Simd::Set1(q[r * args.head_dim + d]);
      NIBBLE_ATTENTION_UNROLL
      for (int s = 0; s < kStrips; ++s) sums[r][s] = Simd::MulAdd(query, keys[s], sums[r][s]);
    }
  }
  NIBBLE_ATTENTION_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_ATTENTION_UNROLL
    for (int s = 0; s < kStrips; ++s) {
      Simd::Store(scores + r * kTileKeys + (first + s) * kStripKeys, sums[r][s]);
    }
  }
}

// The keys of a strip that a row sees, a bit each.
static inline uint32_t VisibleLanes(const AttendTileArgs& args, int64_t row, int64_t strip) {
  const int64_t begin = args.key_begin[row];
  const int64_t end = args.key_end[row];
  const uint64_t end_mask = end >= kTileKeys ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
  const uint64_t mask = end_mask & (~uint64_t{0} << begin);
  return static_cast<uint32_t>(mask >> (strip * kStripKeys)) & 0xffffU;
}

// Scores of one row times all scales, -inf where the row does not see the key. Returns the row's
// maximum so far.
template <class Simd>
static inline float ScaleScores(const AttendTileArgs& args, int64_t row, float* scores) {
  const auto scale = Simd::Set1(args.scale);
  const auto lowest = Simd::Set1(-__builtin_inff());
  auto largest = lowest;
  NIBBLE_ATTENTION_UNROLL
  for (int s = 0; s < kTileStrips; ++s) {
    auto score = Simd::Load(scores + s * kStripKeys);
    const float* key_scales = args.strips[s].key_scales;
    if (key_scales != nullptr) score = Simd::Mul(score, Simd::Load(key_scales));
    score = Simd::Select(VisibleLanes(args, row, s), Simd::Mul(score, scale), lowest);
    Simd::Store(scores + s * kStripKeys, score);
    largest = Simd::Max(largest, score);
  }
  const float tile_max = Simd::ReduceMax(largest);
  const float max = args.state.max[row];
  return tile_max > max ? tile_max : max;
}

// Scaled scores of one row become what its values are to be multiplied by. Returns the sum of the
// weights.
template <class Simd>
static inline float WeighKeys(const AttendTileArgs& args, int64_t row, float max, float* scores) {
  const auto offset = Simd::Set1(max);
  auto sum = Simd::Zero();
  NIBBLE_ATTENTION_UNROLL
  for (int s = 0; s < kTileStrips; ++s) {
    auto weight = Simd::Exp(Simd::Sub(Simd::Load(scores + s * kStripKeys), offset));
    weight = Simd::Select(VisibleLanes(args, row, s), weight, Simd::Zero());
    sum = Simd::Add(sum, weight);
    const float* value_scales = args.strips[s].value_scales;
    if (value_scales != nullptr) weight = Simd::Mul(weight, Simd::Load(value_scales));
    Simd::Store(scores + s * kStripKeys, weight);
  }
  return Simd::ReduceAdd(sum);
}

// Turns scores into the factors of the values, relative to each row's new maximum, and moves the
// rows' states there. Step by step for all rows: a row alone is one long chain of dependent
// operations. A row that sees nothing keeps its state.
template <class Simd, int kRows>
static void UpdateSoftmax(const AttendTileArgs& args, int64_t row, float* scores) {
  static_assert(kRows <= kStripKeys);
  float* const max = args.state.max + row;
  float new_max[kRows];
  alignas(64) float corrections[kStripKeys] = {};
  for (int r = 0; r < kRows; ++r) {
    new_max[r] = ScaleScores<Simd>(args, row + r, scores + r * kTileKeys);
    // 0 also where both are -inf.
    if (new_max[r] != max[r]) corrections[r] = max[r] - new_max[r];
  }
  Simd::Store(corrections, Simd::Exp(Simd::Load(corrections)));
  for (int r = 0; r < kRows; ++r) {
    const float sum = WeighKeys<Simd>(args, row + r, new_max[r], scores + r * kTileKeys);
    args.state.sum[row + r] = args.state.sum[row + r] * corrections[r] + sum;
    max[r] = new_max[r];
  }
  for (int r = 0; r < kRows; ++r) {
    if (corrections[r] == 1.0F) continue;
    const auto rescale = Simd::Set1(corrections[r]);
    float* acc = args.state.acc + (row + r) * args.padded_dim;
    for (int64_t column = 0; column < args.padded_dim; column += kPadColumns) {
      Simd::Store(acc + column, Simd::Mul(Simd::Load(acc + column), rescale));
    }
  }
}

// acc[r, column ..] += weights[r, j] * values[j, column ..] for j in [begin, end), for kRows rows
// and kColumns vectors.
template <class Simd, KvElement kElement, int kRows, int kColumns>
static void AccumulateColumns(const AttendTileArgs& args, int64_t row, int64_t column,
                              int64_t begin, int64_t end, const float* weights) {
  float* acc = args.state.acc + row * args.padded_dim + column;
  typename Simd::Floats sums[kRows][kColumns];
  NIBBLE_ATTENTION_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_ATTENTION_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      sums[r][c] = Simd::Load(acc + r * args.padded_dim + c * kPadColumns);
    }
  }
  for (int64_t strip = begin / kStripKeys; strip * kStripKeys < end; ++strip) {
    const int64_t first = strip * kStripKeys > begin ? strip * kStripKeys : begin;
    const int64_t last = (strip + 1) * kStripKeys < end ? (strip + 1) * kStripKeys : end;
    const void* values = args.strips[strip].values;
    const void* next = args.next != nullptr && row == 0 ? args.next[strip].values : nullptr;
    for (int64_t j = first; j < last; ++j) {
      const int64_t at = (j - strip * kStripKeys) * args.value_stride + column;
      typename Simd::Floats value[kColumns];
      NIBBLE_ATTENTION_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        if (next != nullptr) Fetch<kElement>(next, at + c * kPadColumns);
        value[c] = Simd::template LoadAs<kElement>(values, at + c * kPadColumns);
      }
      NIBBLE_ATTENTION_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const auto weight = Simd::Set1(weights[r * kTileKeys + j]);
        NIBBLE_ATTENTION_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          sums[r][c] = Simd::MulAdd(weight, value[c], sums[r][c]);
        }
      }
    }
  }
  NIBBLE_ATTENTION_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_ATTENTION_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      Simd::Store(acc + r * args.padded_dim + c * kPadColumns, sums[r][c]);
    }
  }
}

template <class Simd, KvElement kElement, int kRows>
static void Accumulate(const AttendTileArgs& args, int64_t row, int64_t begin, int64_t end,
                       const float* weights) {
  if (begin >= end) return;
  constexpr int kWide = Simd::Columns(kRows);
  int64_t column = 0;
  for (; column + kWide * kPadColumns <= args.padded_dim; column += kWide * kPadColumns) {
    AccumulateColumns<Simd, kElement, kRows, kWide>(args, row, column, begin, end, weights);
  }
  if constexpr (kWide > 2) {
    if (column + 2 * kPadColumns <= args.padded_dim) {
      AccumulateColumns<Simd, kElement, kRows, 2>(args, row, column, begin, end, weights);
      column += 2 * kPadColumns;
    }
  }
  if constexpr (kWide > 1) {
    if (column < args.padded_dim) {
      AccumulateColumns<Simd, kElement, kRows, 1>(args, row, column, begin, end, weights);
    }
  }
}

template <class Simd, KvElement kElement, int kRows>
static void AttendRows(const AttendTileArgs& args, int64_t row) {
  // Keys that all rows see are shared; before and after them each row goes alone, so that a key
  // that a row must not see never enters its arithmetic, not even with weight 0.
  int64_t shared_begin = 0;
  int64_t shared_end = kTileKeys;
  for (int64_t r = row; r < row + kRows; ++r) {
    if (args.key_begin[r] > shared_begin) shared_begin = args.key_begin[r];
    if (args.key_end[r] < shared_end) shared_end = args.key_end[r];
  }
  alignas(64) float weights[kRows * kTileKeys];
  constexpr int kStrips = Simd::Strips(kRows);
  for (int64_t first = 0; first < kTileStrips; first += kStrips) {
    ScoreStrips<Simd, kElement, kRows, kStrips>(args, row, first, weights);
  }
  UpdateSoftmax<Simd, kRows>(args, row, weights);
  const bool share = shared_begin < shared_end;
  for (int r = 0; r < kRows; ++r) {
    Accumulate<Simd, kElement, 1>(args, row + r, args.key_begin[row + r],
                                  share ? shared_begin : args.key_end[row + r],
                                  weights + r * kTileKeys);
  }
  if (!share) return;
  Accumulate<Simd, kElement, kRows>(args, row, shared_begin, shared_end, weights);
  for (int r = 0; r < kRows; ++r) {
    Accumulate<Simd, kElement, 1>(args, row + r, shared_end, args.key_end[row + r],
                                  weights + r * kTileKeys);
  }
}

template <class Simd, KvElement kElement>
static void AttendAll(const AttendTileArgs& args) {
  static_assert(Simd::kMaxRows == 6);
  int64_t row = 0;
  while (row < args.num_rows) {
    if (args.key_begin[row] >= args.key_end[row]) {
      ++row;
      continue;
    }
    // Even shares: 8 rows are 4 and 4, because few rows do not hide the latency of an addition.
    const int64_t left = args.num_rows - row;
    const int64_t parts = (left + Simd::kMaxRows - 1) / Simd::kMaxRows;
    const int64_t count = (left + parts - 1) / parts;
    switch (count) {
      case 1:
        AttendRows<Simd, kElement, 1>(args, row);
        break;
      case 2:
        AttendRows<Simd, kElement, 2>(args, row);
        break;
      case 3:
        AttendRows<Simd, kElement, 3>(args, row);
        break;
      case 4:
        AttendRows<Simd, kElement, 4>(args, row);
        break;
      case 5:
        AttendRows<Simd, kElement, 5>(args, row);
        break;
      default:
        AttendRows<Simd, kElement, 6>(args, row);
        break;
    }
    row += count;
  }
}

template <class Simd>
static void PackTileWith(const PackTileArgs& args) {
  switch (args.element) {
    case KvElement::kF32:
      PackKeys<Simd, KvElement::kF32>(args);
      PackValues<Simd, KvElement::kF32>(args);
      return;
    case KvElement::kBf16:
      PackKeys<Simd, KvElement::kBf16>(args);
      PackValues<Simd, KvElement::kBf16>(args);
      return;
    case KvElement::kF16:
      PackKeys<Simd, KvElement::kF16>(args);
      PackValues<Simd, KvElement::kF16>(args);
      return;
    case KvElement::kI8:
      PackKeys<Simd, KvElement::kI8>(args);
      PackValues<Simd, KvElement::kI8>(args);
      return;
  }
}

template <class Simd>
static void AttendTileWith(const AttendTileArgs& args) {
  switch (args.element) {
    case KvElement::kF32:
      AttendAll<Simd, KvElement::kF32>(args);
      return;
    case KvElement::kBf16:
      AttendAll<Simd, KvElement::kBf16>(args);
      return;
    case KvElement::kF16:
      AttendAll<Simd, KvElement::kF16>(args);
      return;
    case KvElement::kI8:
      AttendAll<Simd, KvElement::kI8>(args);
      return;
  }
}

}  // namespace nibble::kernels

#undef NIBBLE_ATTENTION_UNROLL
