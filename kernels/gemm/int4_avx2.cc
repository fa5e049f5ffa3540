// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W4A8 with vpmaddubsw. Its 16-bit sums of two products saturate, so weights stay raw codes: 2 * 15
// * 127 = 3810, and eight such sums (30480) fit 16 bits. The folded bytes u * S + a reach 248, and
// 2 * 248 * 127 would not fit: here the scales of every form are applied to the exact int32 sum of
// a group, which gives the same integers as folding them does.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels::avx2 {
namespace {

constexpr int kLanes = 8;
constexpr int kVectors = 2;  // a panel is 16 output channels
constexpr int kPanel = kVectors * kLanes;
constexpr int kStepBytes = kPanel * 4;  // packed codes of 8 k; unpacked bytes of 4 k
// 3 rows * 2 vectors of 16-bit sums, as many of 32-bit sums, weights and activations: about the 16
// registers there are.
constexpr int kTileRows = 3;
constexpr int kMaxSums16 = 8;  // products of vpmaddubsw that one 16-bit lane holds

// The next four activations of a row, in every 32-bit lane.
inline __m256i Broadcast4(const int8_t* a) {
  int32_t four = 0;
  __builtin_memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

inline __m256i LowHalves(__m256i codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
inline __m256i HighHalves(__m256i codes) {
  return _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
}

inline __m256i LoadInts(const int32_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}
inline void StoreInts(int32_t* at, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value);
}
inline __m256i LoadCodes(const uint8_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}
inline __m256i LoadBytes(const uint8_t* bytes) {  // 8 bytes, one per lane
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
}

// 32-bit sums of the pairs of 16-bit lanes, added to `sum`.
inline __m256i AddPairs(__m256i sum, __m256i sums16) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(sums16, _mm256_set1_epi16(1)));
}

// sum_k (u - zero) * a of a group from sum_k u * a.
inline __m256i SubtractZero(const Int4Block& block, int64_t row, int64_t g, __m256i zero,
                            __m256i partial) {
  const __m256i a_sum = _mm256_set1_epi32(block.group_sums[row * block.num_groups + g]);
  return _mm256_sub_epi32(partial, _mm256_mullo_epi32(zero, a_sum));
}
inline __m256i LoadZeros(const Int4Block& block, int64_t g, int v) {
  if (block.zeros == nullptr) return _mm256_set1_epi32(8);
  return LoadBytes(block.zeros + g * kPanel + v * kLanes);
}

inline int64_t GroupLength(const Int4Block& block, int64_t g) {
  return g + 1 < block.num_groups ? block.group : block.last_group;
}

// d = value + bias for the columns that exist.
inline void Store(const Int4Block& block, int64_t row, int v, __m256 value) {
  const int64_t left = block.columns - v * kLanes;
  if (left <= 0) return;
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int count = static_cast<int>(left < kLanes ? left : kLanes);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
  if (block.bias != nullptr) {
    value = _mm256_add_ps(value, _mm256_maskload_ps(block.bias + v * kLanes, mask));
  }
  _mm256_maskstore_ps(block.d + row * block.d_stride + v * kLanes, mask, value);
}

// How the exact sum of a group enters the sum of a row.
struct Integer {
  using Sum = __m256i;
  static inline Sum Zero() { return _mm256_setzero_si256(); }
  static inline Sum Load(const Int4Block& block, int64_t g, int v) {
    return _mm256_add_epi32(LoadBytes(block.integers + g * kPanel + v * kLanes),
                            LoadInts(block.integer_offset + v * kLanes));
  }
  static inline Sum Add(Sum sum, __m256i partial, Sum scale) {
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(partial, scale));
  }
  static inline Sum LoadSum(const int32_t* at) { return LoadInts(at); }
  static inline void StoreSum(int32_t* at, Sum sum) { StoreInts(at, sum); }
  // float(sum) * (s_a * c[n])
  static inline __m256 Finish(const Int4Block& block, int64_t row, int v, Sum sum) {
    const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(block.a_scales[row]),
                                       _mm256_loadu_ps(block.channel + v * kLanes));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
  }
};
struct Float {
  using Sum = __m256;
  static inline Sum Zero() { return _mm256_setzero_ps(); }
  static inline Sum Load(const Int4Block& block, int64_t g, int v) {
    return _mm256_loadu_ps(block.float_scales + g * kPanel + v * kLanes);
  }
  static inline Sum Add(Sum sum, __m256i partial, Sum scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(partial), scale, sum);
  }
  static inline Sum LoadSum(const int32_t* at) { return _mm256_castsi256_ps(LoadInts(at)); }
  static inline void StoreSum(int32_t* at, Sum sum) { StoreInts(at, _mm256_castps_si256(sum)); }
  static inline __m256 Finish(const Int4Block& block, int64_t row, int /*v*/, Sum sum) {
    return _mm256_mul_ps(sum, _mm256_set1_ps(block.a_scales[row]));
  }
};

// ---- Few rows: bound by memory. Codes are unpacked in registers.

template <typename Form, int kRows>
void FewRowsTile(const Int4Block& block, int64_t row) {
  const int8_t* a = block.a + row * block.a_stride;
  const uint8_t* codes = block.codes;
  typename Form::Sum sums[kRows][kVectors];
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Form::Zero();
  }
  for (int64_t g = 0; g < block.num_groups; ++g) {
    __m256i partial[kRows][kVectors];
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) partial[r][v] = _mm256_setzero_si256();
    }
    const int64_t length = GroupLength(block, g);
    constexpr int64_t kSpan = kMaxSums16 / 2 * 8;  // each 8 k add two products to a 16-bit lane
    for (int64_t begin = 0; begin < length; begin += kSpan) {
      const int64_t end = length - begin < kSpan ? length : begin + kSpan;
      __m256i sums16[kRows][kVectors];
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        NIBBLE_UNROLL
        for (int v = 0; v < kVectors; ++v) sums16[r][v] = _mm256_setzero_si256();
      }
      for (int64_t k = begin; k < end; k += 8) {
        NIBBLE_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          const __m256i packed = LoadCodes(codes + v * 32);
          const __m256i low = LowHalves(packed);
          const __m256i high = HighHalves(packed);
          NIBBLE_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const int8_t* x = a + r * block.a_stride + k;
            const __m256i first = _mm256_maddubs_epi16(low, Broadcast4(x));
            const __m256i second = _mm256_maddubs_epi16(high, Broadcast4(x + 4));
            sums16[r][v] = _mm256_add_epi16(sums16[r][v], _mm256_add_epi16(first, second));
          }
        }
        codes += kStepBytes;
      }
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        NIBBLE_UNROLL
        for (int v = 0; v < kVectors; ++v) partial[r][v] = AddPairs(partial[r][v], sums16[r][v]);
      }
    }
    a += length;
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto scale = Form::Load(block, g, v);
      const __m256i zero = LoadZeros(block, g, v);
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256i p = SubtractZero(block, row + r, g, zero, partial[r][v]);
        sums[r][v] = Form::Add(sums[r][v], p, scale);
      }
    }
  }
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      Store(block, row + r, v, Form::Finish(block, row + r, v, sums[r][v]));
    }
  }
}

template <typename Form>
void FewRows(const Int4Block& block) {
  int64_t row = 0;
  for (; row + 3 <= block.rows; row += 3) FewRowsTile<Form, 3>(block, row);
  if (block.rows - row == 2) FewRowsTile<Form, 2>(block, row);
  if (block.rows - row == 1) FewRowsTile<Form, 1>(block, row);
}

// ---- Many rows: bound by vpmaddubsw. A group is unpacked once into cache, then read by all rows
// of the block; sums wait in `sums` between groups.

struct Scratch {
  alignas(64) uint8_t weights[kMaxPackedGroup / 4 * kStepBytes];  // [group / 4, kPanel, 4]
  alignas(64) int32_t sums[kMaxBlockRows * kPanel];               // [rows, kPanel], or float bits
};

void Unpack(const uint8_t* codes, int64_t length, uint8_t* out) {
  for (int64_t k = 0; k < length; k += 8) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m256i packed = LoadCodes(codes + v * 32);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + v * 32), LowHalves(packed));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + kStepBytes + v * 32), HighHalves(packed));
    }
    codes += kStepBytes;
    out += 2 * kStepBytes;
  }
}

template <typename Form, int kRows>
void ManyRowsTile(const Int4Block& block, int64_t row, int64_t g, int64_t begin, int64_t length,
                  Scratch* scratch) {
  const int8_t* a = block.a + row * block.a_stride + begin * kTileRows;
  const uint8_t* weights = scratch->weights;
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
    for (int64_t k = first; k < last; k += 4) {
      __m256i w[kVectors];
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) w[v] = LoadCodes(weights + v * 32);
      weights += kStepBytes;
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = Broadcast4(a + r * 4);
        NIBBLE_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          sums16[r][v] = _mm256_add_epi16(sums16[r][v], _mm256_maddubs_epi16(w[v], x));
        }
      }
      a += kTileRows * 4;
    }
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) partial[r][v] = AddPairs(partial[r][v], sums16[r][v]);
    }
  }
  NIBBLE_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const auto scale = Form::Load(block, g, v);
    const __m256i zero = LoadZeros(block, g, v);
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m256i p = SubtractZero(block, row + r, g, zero, partial[r][v]);
      int32_t* at = scratch->sums + (row + r) * kPanel + v * kLanes;
      Form::StoreSum(at, Form::Add(Form::LoadSum(at), p, scale));
    }
  }
}

template <typename Form>
void ManyRows(const Int4Block& block) {
  Scratch scratch;
  const int64_t tiles = (block.rows + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < tiles * kTileRows * kPanel; i += kLanes) {
    StoreInts(scratch.sums + i, _mm256_setzero_si256());
  }
  const uint8_t* codes = block.codes;
  int64_t begin = 0;
  for (int64_t g = 0; g < block.num_groups; ++g) {
    const int64_t length = GroupLength(block, g);
    Unpack(codes, length, scratch.weights);
    int64_t row = 0;
    for (; row + 1 < block.rows; row += kTileRows) {
      ManyRowsTile<Form, kTileRows>(block, row, g, begin, length, &scratch);
    }
    if (row < block.rows) ManyRowsTile<Form, 1>(block, row, g, begin, length, &scratch);
    codes += length / 8 * kStepBytes;
    begin += length;
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto sum = Form::LoadSum(scratch.sums + row * kPanel + v * kLanes);
      Store(block, row, v, Form::Finish(block, row, v, sum));
    }
  }
}

}  // namespace

void Int4FewRowsInteger(const Int4Block& block) { FewRows<Integer>(block); }
void Int4FewRowsFloat(const Int4Block& block) { FewRows<Float>(block); }
void Int4ManyRowsInteger(const Int4Block& block) { ManyRows<Integer>(block); }
void Int4ManyRowsFloat(const Int4Block& block) { ManyRows<Float>(block); }

}  // namespace nibble::kernels::avx2
