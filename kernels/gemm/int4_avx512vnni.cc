// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W4A8 with vpdpbusd, codes unpacked in registers by every tile of rows: on current CPUs the shift
// and the masks run beside the products. Scales are applied to the exact sums of groups, once for
// all of a group, which gives the same integers as folding them into the codes.

#include "kernels/gemm/int4_avx512vnni.h"

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace nibble::kernels::avx512vnni {
namespace {

// How the exact sum of a group enters the sum of a row.
struct Integer {
  using Sum = __m512i;
  static inline Sum Load(const Int4Block& block, int64_t g, int v) {
    return LoadIntegers(block, g, v);
  }
  static inline Sum Add(Sum sum, __m512i partial, Sum scale) {
    return _mm512_add_epi32(sum, _mm512_mullo_epi32(partial, scale));
  }
  static inline Sum LoadSum(const int32_t* at) { return _mm512_load_si512(at); }
  static inline void StoreSum(int32_t* at, Sum sum) { _mm512_store_si512(at, sum); }
  static inline __m512 Finish(const Int4Block& block, int64_t row, int v, Sum sum) {
    return ScaleSum(block.rows, block.channel, row, v, sum);
  }
  static inline void PrefetchScales(const Int4Block& block, int64_t g) {
    Prefetch(block.integers + g * kPanel);
  }
};
struct Float {
  using Sum = __m512;
  static inline Sum Load(const Int4Block& block, int64_t g, int v) {
    return _mm512_loadu_ps(block.float_scales + g * kPanel + v * kLanes);
  }
  static inline Sum Add(Sum sum, __m512i partial, Sum scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(partial), scale, sum);
  }
  static inline Sum LoadSum(const int32_t* at) {
    return _mm512_castsi512_ps(_mm512_load_si512(at));
  }
  static inline void StoreSum(int32_t* at, Sum sum) {
    _mm512_store_si512(at, _mm512_castps_si512(sum));
  }
  static inline __m512 Finish(const Int4Block& block, int64_t row, int /*v*/, Sum sum) {
    return _mm512_mul_ps(sum, _mm512_set1_ps(block.rows.a_scales[row]));
  }
  static inline void PrefetchScales(const Int4Block& block, int64_t g) {
    Prefetch(block.float_scales + g * kPanel);
    Prefetch(block.float_scales + g * kPanel + kLanes);
  }
};

// -zero * sum of the group's activations, where sums of code * activation start from.
template <int kRows>
inline void Start(const Int4Block& block, int64_t g, const int32_t* group_starts,
                  Accumulators<kRows>* acc) {
  if (block.zeros == nullptr) {
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512i start = _mm512_set1_epi32(group_starts[r]);
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) acc->at[r][v] = start;
    }
    return;
  }
  NIBBLE_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const __m512i zero = LoadBytes(block.zeros + g * kPanel + v * kLanes);
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      acc->at[r][v] = _mm512_mullo_epi32(zero, _mm512_set1_epi32(group_starts[r]));
    }
  }
}

template <int kRows>
inline void DotHalf(const __m512i w[kVectors], const int8_t* a, __m512i acc[kRows][kVectors]) {
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const __m512i x = Broadcast4(a + r * 4);
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], w[v], x);
  }
}

// acc += codes times a tile of activations.
template <int kRows>
inline void Dot(const uint8_t* codes, int64_t ahead, const int8_t* a, int64_t length,
                Accumulators<kRows>* acc) {
  // Few rows alone would wait for the latency of their accumulators: two chains per sum.
  constexpr bool kTwoChains = kRows <= 4;
  Accumulators<kRows> second;
  if constexpr (kTwoChains) {
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) second.at[r][v] = _mm512_setzero_si512();
    }
  }
  for (int64_t k = 0; k < length; k += 8) {
    __m512i low[kVectors];
    __m512i high[kVectors];
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i packed = _mm512_loadu_si512(codes + v * 64);
      Prefetch(codes + ahead + v * 64);
      low[v] = LowHalves(packed);
      high[v] = HighHalves(packed);
    }
    codes += kStepBytes;
    DotHalf<kRows>(low, a, acc->at);
    DotHalf<kRows>(high, a + kRows * 4, kTwoChains ? second.at : acc->at);
    a += kRows * 8;
  }
  acc->Pin();
  if constexpr (kTwoChains) {
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc->at[r][v] = _mm512_add_epi32(acc->at[r][v], second.at[r][v]);
      }
    }
  }
}

template <typename Form>
struct GroupTiles {
  const Int4Block& block;
  const uint8_t* codes;
  int64_t g;
  int64_t begin;
  int64_t length;
  int32_t* sums;  // [rows, kPanel]

  template <int kRows>
  inline void Run(int64_t row) const {
    Accumulators<kRows> acc;
    Start<kRows>(block, g, block.rows.group_starts + row * block.num_groups + g * kRows, &acc);
    const int64_t ahead = row == 0 ? kAheadBytes : 0;
    Dot<kRows>(codes, ahead, block.rows.a + row * block.rows.k + begin * kRows, length, &acc);
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto scale = Form::Load(block, g, v);
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        int32_t* at = sums + (row + r) * kPanel + v * kLanes;
        Form::StoreSum(at, Form::Add(Form::LoadSum(at), acc.at[r][v], scale));
      }
    }
  }
};

template <typename Form>
void Multiply(const Int4Block& block) {
  alignas(64) int32_t sums[kMaxBlockRows * kPanel];
  for (int64_t i = 0; i < block.rows.rows * kPanel; i += kLanes) {
    _mm512_store_si512(sums + i, _mm512_setzero_si512());
  }
  const uint8_t* codes = block.codes;
  int64_t begin = 0;
  for (int64_t g = 0; g < block.num_groups; ++g) {
    const int64_t length = GroupLength(block, g);
    Form::PrefetchScales(block, g + 4);
    ForTiles(block.rows, GroupTiles<Form>{block, codes, g, begin, length, sums});
    codes += length / 8 * kStepBytes;
    begin += length;
  }
  for (int64_t row = 0; row < block.rows.rows; ++row) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto sum = Form::LoadSum(sums + row * kPanel + v * kLanes);
      Store(block.rows, row, v, Form::Finish(block, row, v, sum));
    }
  }
}

}  // namespace

void Int4Integer(const Int4Block& block) { Multiply<Integer>(block); }
void Int4Float(const Int4Block& block) { Multiply<Float>(block); }

}  // namespace nibble::kernels::avx512vnni
