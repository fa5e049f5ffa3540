// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W4A8 with vpmaddubsw. Its 16-bit sums of two products saturate, so weights stay raw codes: 2 * 15
// * 127 = 3810, and eight such sums (30480) fit 16 bits. The folded bytes u * S + a reach 248, and
// 2 * 248 * 127 would not fit: here the scales of every form are applied to the exact int32 sum of
// a group, which gives the same integers as folding them does.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/integer_avx2.h"

namespace nibble::kernels::avx2 {
namespace {

constexpr int kMaxSums16 = 8;  // products of vpmaddubsw that one 16-bit lane holds

inline int64_t GroupLength(const Int4Block& block, int64_t g) {
  return g + 1 < block.num_groups ? block.group : block.last_group;
}

// How the exact sum of a group enters the sum of a row.
struct Integer {
  using Sum = __m256i;
  static inline Sum Load(const Int4Block& block, int64_t g, int v) {
    return _mm256_add_epi32(LoadBytes(block.integers + g * kPanel + v * kLanes),
                            LoadInts(block.integer_offset + v * kLanes));
  }
  static inline Sum Add(Sum sum, __m256i partial, Sum scale) {
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(partial, scale));
  }
  static inline Sum LoadSum(const int32_t* at) { return LoadInts(at); }
  static inline void StoreSum(int32_t* at, Sum sum) { StoreInts(at, sum); }
  static inline __m256 Finish(const Int4Block& block, int64_t row, int v, Sum sum) {
    return ScaleSum(block.rows, block.channel, row, v, sum);
  }
};
struct Float {
  using Sum = __m256;
  static inline Sum Load(const Int4Block& block, int64_t g, int v) {
    return _mm256_loadu_ps(block.float_scales + g * kPanel + v * kLanes);
  }
  static inline Sum Add(Sum sum, __m256i partial, Sum scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(partial), scale, sum);
  }
  static inline Sum LoadSum(const int32_t* at) { return _mm256_castsi256_ps(LoadInts(at)); }
  static inline void StoreSum(int32_t* at, Sum sum) { StoreInts(at, _mm256_castps_si256(sum)); }
  static inline __m256 Finish(const Int4Block& block, int64_t row, int /*v*/, Sum sum) {
    return _mm256_mul_ps(sum, _mm256_set1_ps(block.rows.a_scales[row]));
  }
};

// Where a tile's loop over 8 k finds its codes, two vectors of 4 k each.
struct Packed {  // in memory as they are, unpacked in registers
  static constexpr bool kFetch = true;
  static constexpr int kBytes = kStepBytes;
  static inline __m256i Low(const uint8_t* codes, int v) {
    return _mm256_and_si256(LoadInts(codes + v * 32), _mm256_set1_epi8(15));
  }
  static inline __m256i High(const uint8_t* codes, int v) {
    return _mm256_and_si256(_mm256_srli_epi16(LoadInts(codes + v * 32), 4), _mm256_set1_epi8(15));
  }
};
struct Unpacked {  // in the first-level cache, once for all tiles of the block
  static constexpr bool kFetch = false;
  static constexpr int kBytes = 2 * kStepBytes;
  static inline __m256i Low(const uint8_t* codes, int v) { return LoadInts(codes + v * 32); }
  static inline __m256i High(const uint8_t* codes, int v) {
    return LoadInts(codes + kStepBytes + v * 32);
  }
};

void Unpack(const uint8_t* codes, int64_t length, uint8_t* out) {
  for (int64_t k = 0; k < length; k += 8) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      auto* to = reinterpret_cast<__m256i*>(out + v * 32);
      _mm256_store_si256(to, Packed::Low(codes, v));
      _mm256_store_si256(to + kStepBytes / 32, Packed::High(codes, v));
    }
    Prefetch(codes + kAheadBytes);
    codes += kStepBytes;
    out += 2 * kStepBytes;
  }
}

template <int kRows>
inline void DotHalf(const __m256i w[kVectors], const int8_t* a, __m256i sums16[kRows][kVectors]) {
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const __m256i x = Broadcast4(a + r * 4);
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      sums16[r][v] = _mm256_add_epi16(sums16[r][v], _mm256_maddubs_epi16(w[v], x));
    }
  }
}

template <typename Form, typename Codes>
struct GroupTiles {
  const Int4Block& block;
  const uint8_t* codes;
  int64_t g;
  int64_t begin;
  int64_t length;
  int32_t* sums;  // [rows, kPanel]

  template <int kRows>
  inline void Run(int64_t row) const {
    const int8_t* a = block.rows.a + row * block.rows.k + begin * kRows;
    const uint8_t* weights = codes;
    const bool fetch = Codes::kFetch && row == 0;
    __m256i partial[kRows][kVectors];
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) partial[r][v] = _mm256_setzero_si256();
    }
    constexpr int64_t kSpan = kMaxSums16 * 4;
    for (int64_t first = 0; first < length; first += kSpan) {
      const int64_t last = length - first < kSpan ? length : first + kSpan;
      __m256i sums16[kRows][kVectors];
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        NIBBLE_UNROLL
        for (int v = 0; v < kVectors; ++v) sums16[r][v] = _mm256_setzero_si256();
      }
      for (int64_t k = first; k < last; k += 8) {
        if (fetch) Prefetch(weights + kAheadBytes);
        const __m256i low[kVectors] = {Codes::Low(weights, 0), Codes::Low(weights, 1)};
        DotHalf<kRows>(low, a, sums16);
        const __m256i high[kVectors] = {Codes::High(weights, 0), Codes::High(weights, 1)};
        DotHalf<kRows>(high, a + kRows * 4, sums16);
        weights += Codes::kBytes;
        a += kRows * 8;
      }
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        NIBBLE_UNROLL
        for (int v = 0; v < kVectors; ++v) partial[r][v] = AddPairs(partial[r][v], sums16[r][v]);
      }
    }
    const int32_t* starts = block.rows.group_starts + row * block.num_groups + g * kRows;
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto scale = Form::Load(block, g, v);
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        // sum_k (u - zero) * a from sum_k u * a
        __m256i start = _mm256_set1_epi32(starts[r]);
        if (block.zeros != nullptr) {
          start = _mm256_mullo_epi32(start, LoadBytes(block.zeros + g * kPanel + v * kLanes));
        }
        const __m256i p = _mm256_add_epi32(partial[r][v], start);
        int32_t* at = sums + (row + r) * kPanel + v * kLanes;
        Form::StoreSum(at, Form::Add(Form::LoadSum(at), p, scale));
      }
    }
  }
};

template <typename Form>
void Multiply(const Int4Block& block) {
  alignas(64) uint8_t unpacked[kMaxPackedGroup / 4 * kStepBytes];  // [group / 4, kPanel, 4]
  alignas(64) int32_t sums[kMaxBlockRows * kPanel];
  for (int64_t i = 0; i < block.rows.rows * kPanel; i += kLanes) {
    StoreInts(sums + i, _mm256_setzero_si256());
  }
  // Unpacking in registers for each tile or once into cache for all: equal at some two tiles.
  const bool in_registers = block.rows.rows <= 2 * block.rows.tile_rows;
  const uint8_t* codes = block.codes;
  int64_t begin = 0;
  for (int64_t g = 0; g < block.num_groups; ++g) {
    const int64_t length = GroupLength(block, g);
    if (in_registers) {
      ForTiles(block.rows, GroupTiles<Form, Packed>{block, codes, g, begin, length, sums});
    } else {
      Unpack(codes, length, unpacked);
      ForTiles(block.rows, GroupTiles<Form, Unpacked>{block, unpacked, g, begin, length, sums});
    }
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

}  // namespace nibble::kernels::avx2
