// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx512.h"
#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels::avx512vnni {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = 4;  // a panel is 64 output channels
constexpr int kPanel = kVectors * kLanes;
// 6 rows * 4 vectors = 24 accumulators, 4 registers of weights and 1 of activations: 29 of 32, and
// more chains than latency (4) * ports (2) asks for.
constexpr int kTileRows = 6;
// With many rows, this much of a panel (32 KiB of bf16) stays in the first-level cache while the
// rows pass by.
constexpr int64_t kDepth = 256;

// Four vectors of weights of one k.
struct F32 {
  static constexpr int64_t kBytes = 4;
  static inline void Load(const uint8_t* b, __m512* w) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_ps(b + v * 64);
  }
};
struct F16 {
  static constexpr int64_t kBytes = 2;
  static inline void Load(const uint8_t* b, __m512* w) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      w[v] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + v * 32)));
    }
  }
};
// Two vectors are interleaved by element, so that widening is one shift or one mask each.
struct Bf16 {
  static constexpr int64_t kBytes = 2;
  static inline void Load(const uint8_t* b, __m512* w) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
    NIBBLE_UNROLL
    for (int p = 0; p < kVectors / 2; ++p) {
      const __m512i pair = _mm512_loadu_si512(b + p * 64);
      w[2 * p] = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
      w[2 * p + 1] = _mm512_castsi512_ps(_mm512_and_si512(pair, high));
    }
  }
};

// kRows rows times the panel over k in [begin, end), whose weights are at `b`. One accumulator per
// output, in the order of k: storing it to d between two stretches of k changes no bit.
template <typename Storage, int kRows>
void Tile(const DenseBlock& block, const uint8_t* b, int64_t row, int64_t begin, int64_t end) {
  const float* a[kRows];
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) a[r] = RowAt(block.a, block.a_stride, block.a_rows, row + r);
  float* d = block.d + row * block.d_stride;
  __m512 acc[kRows][kVectors];
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = begin == 0 ? _mm512_setzero_ps()
                             : _mm512_maskz_loadu_ps(FirstLanes(block.columns - v * kLanes),
                                                     d + r * block.d_stride + v * kLanes);
    }
  }
  for (int64_t k = begin; k < end; ++k) {
    __m512 w[kVectors];
    Storage::Load(b, w);
    b += kPanel * Storage::kBytes;
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512 x = _mm512_set1_ps(a[r][k]);
      NIBBLE_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm512_fmadd_ps(x, w[v], acc[r][v]);
    }
  }
  NIBBLE_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const __mmask16 mask = FirstLanes(block.columns - v * kLanes);
    if (mask == 0) break;
    const bool biased = end == block.k && block.bias != nullptr;
    const __m512 bias =
        biased ? _mm512_maskz_loadu_ps(mask, block.bias + v * kLanes) : _mm512_setzero_ps();
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512 value = biased ? _mm512_add_ps(acc[r][v], bias) : acc[r][v];
      _mm512_mask_storeu_ps(d + r * block.d_stride + v * kLanes, mask, value);
    }
  }
}

template <typename Storage>
void MultiplyRows(const DenseBlock& block, const uint8_t* b, int64_t begin, int64_t end) {
  int64_t row = 0;
  for (; row + kTileRows <= block.rows; row += kTileRows) {
    Tile<Storage, kTileRows>(block, b, row, begin, end);
  }
  switch (block.rows - row) {
    case 5:
      Tile<Storage, 5>(block, b, row, begin, end);
      break;
    case 4:
      Tile<Storage, 4>(block, b, row, begin, end);
      break;
    case 3:
      Tile<Storage, 3>(block, b, row, begin, end);
      break;
    case 2:
      Tile<Storage, 2>(block, b, row, begin, end);
      break;
    case 1:
      Tile<Storage, 1>(block, b, row, begin, end);
      break;
    default:
      break;
  }
}

template <typename Storage>
void Multiply(const DenseBlock& block) {
  const int64_t depth = block.rows <= kTileRows ? block.k : kDepth;
  for (int64_t begin = 0; begin < block.k; begin += depth) {
    const int64_t end = block.k - begin < depth ? block.k : begin + depth;
    const auto* weights = static_cast<const uint8_t*>(block.weights);
    MultiplyRows<Storage>(block, weights + begin * kPanel * Storage::kBytes, begin, end);
  }
}

// 4 bit: this much of k is unpacked to floats (16 KiB) that all rows read from the first-level
// cache.
constexpr int64_t kInt4Depth = 64;

// w = scale * (code - zero) of 16 channels in one group, the difference exact.
template <bool kHasZeros>
struct Int4Group {
  __m512 levels;
  __m512 zero;
  __m512 scale;
  Int4Group(const DenseBlock& block, int64_t at) : scale(_mm512_loadu_ps(block.scales + at)) {
    levels = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    zero = _mm512_set1_ps(8.0F);
    if (kHasZeros) {
      zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.zeros + at))));
    } else {
      levels = _mm512_sub_ps(levels, zero);
    }
  }
  // The codes are the low four bits of `words` shifted by 4 i: a permutation looks at no others.
  inline __m512 operator()(__m512i words, int i) const {
    const __m512i shifted = _mm512_srlv_epi32(words, _mm512_set1_epi32(4 * i));
    const __m512 level = _mm512_permutexvar_ps(shifted, levels);
    return _mm512_mul_ps(kHasZeros ? _mm512_sub_ps(level, zero) : level, scale);
  }
};

// k in [begin, end) to [k, panel] floats.
template <bool kHasZeros>
void UnpackInt4(const DenseBlock& block, int64_t begin, int64_t end, float* out) {
  for (int64_t k = begin; k < end;) {
    const int64_t group = k / block.group;
    const int64_t group_end = (group + 1) * block.group;
    const int64_t stop = group_end < end ? group_end : end;
    for (int v = 0; v < kVectors; ++v) {
      const Int4Group<kHasZeros> to_float(block, group * kPanel + v * kLanes);
      const auto* words = static_cast<const uint32_t*>(block.weights) + v * kLanes;
      float* to = out + v * kLanes;
      int64_t i = k;
      for (; i < stop && i % 8 != 0; ++i) {
        const __m512i word = _mm512_loadu_si512(words + i / 8 * kPanel);
        _mm512_store_ps(to + (i - begin) * kPanel, to_float(word, static_cast<int>(i % 8)));
      }
      for (; i + 8 <= stop; i += 8) {
        const __m512i word = _mm512_loadu_si512(words + i / 8 * kPanel);
        NIBBLE_UNROLL
        for (int j = 0; j < 8; ++j)
          _mm512_store_ps(to + (i - begin + j) * kPanel, to_float(word, j));
      }
      for (; i < stop; ++i) {
        const __m512i word = _mm512_loadu_si512(words + i / 8 * kPanel);
        _mm512_store_ps(to + (i - begin) * kPanel, to_float(word, static_cast<int>(i % 8)));
      }
    }
    k = stop;
  }
}

}  // namespace

void DenseF32(const DenseBlock& block) { Multiply<F32>(block); }
void DenseBf16(const DenseBlock& block) { Multiply<Bf16>(block); }
void DenseF16(const DenseBlock& block) { Multiply<F16>(block); }

void DenseInt4(const DenseBlock& block) {
  alignas(64) float weights[kInt4Depth * kPanel];
  for (int64_t begin = 0; begin < block.k; begin += kInt4Depth) {
    const int64_t end = block.k - begin < kInt4Depth ? block.k : begin + kInt4Depth;
    if (block.zeros != nullptr) {
      UnpackInt4<true>(block, begin, end, weights);
    } else {
      UnpackInt4<false>(block, begin, end, weights);
    }
    MultiplyRows<F32>(block, reinterpret_cast<const uint8_t*>(weights), begin, end);
  }
}

}  // namespace nibble::kernels::avx512vnni
