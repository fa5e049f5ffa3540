// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "kernels/device/math_avx2.h"
#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels::avx2 {
namespace {

constexpr int kLanes = 8;
constexpr int kVectors = 4;  // a panel is 32 output channels
constexpr int kPanel = kVectors * kLanes;
// 3 rows * 4 vectors = 12 accumulators, 3 registers of activations, 1 of weights: all 16.
constexpr int kTileRows = 3;
// With many rows, this much of a panel (16 KiB of bf16) stays in the first-level cache while the
// rows pass by.
constexpr int64_t kDepth = 256;

// One vector of weights of one k.
struct F32 {
  static constexpr int64_t kBytes = 4;
  static inline __m256 Load(const uint8_t* b, int v) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(b) + v * kLanes);
  }
};
struct F16 {
  static constexpr int64_t kBytes = 2;
  static inline __m256 Load(const uint8_t* b, int v) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b) + v));
  }
};
// Two vectors are interleaved by element, so that widening is one shift or one mask each.
struct Bf16 {
  static constexpr int64_t kBytes = 2;
  static inline __m256 Load(const uint8_t* b, int v) {
    const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b) + v / 2);
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
    return _mm256_castsi256_ps(v % 2 == 0 ? _mm256_slli_epi32(pair, 16)
                                          : _mm256_and_si256(pair, high));
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
  __m256 acc[kRows][kVectors];
  NIBBLE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      acc[r][v] = begin == 0 ? _mm256_setzero_ps()
                             : _mm256_maskload_ps(d + r * block.d_stride + v * kLanes,
                                                  FirstLanes(block.columns - v * kLanes));
    }
  }
  for (int64_t k = begin; k < end; ++k) {
    __m256 x[kRows];
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) x[r] = _mm256_set1_ps(a[r][k]);
    NIBBLE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m256 w = Storage::Load(b, v);
      NIBBLE_UNROLL
      for (int r = 0; r < kRows; ++r) acc[r][v] = _mm256_fmadd_ps(x[r], w, acc[r][v]);
    }
    b += kPanel * Storage::kBytes;
  }
  NIBBLE_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = block.columns - v * kLanes;
    if (left <= 0) break;
    const __m256i mask = FirstLanes(left);
    const bool biased = end == block.k && block.bias != nullptr;
    const __m256 bias =
        biased ? _mm256_maskload_ps(block.bias + v * kLanes, mask) : _mm256_setzero_ps();
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m256 value = biased ? _mm256_add_ps(acc[r][v], bias) : acc[r][v];
      _mm256_maskstore_ps(d + r * block.d_stride + v * kLanes, mask, value);
    }
  }
}

template <typename Storage>
void MultiplyRows(const DenseBlock& block, const uint8_t* b, int64_t begin, int64_t end) {
  int64_t row = 0;
  for (; row + kTileRows <= block.rows; row += kTileRows) {
    Tile<Storage, kTileRows>(block, b, row, begin, end);
  }
  if (block.rows - row == 2) Tile<Storage, 2>(block, b, row, begin, end);
  if (block.rows - row == 1) Tile<Storage, 1>(block, b, row, begin, end);
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
constexpr int64_t kInt4Depth = 128;

// w = scale * (code - zero) of 8 channels in one group, the difference exact.
struct Int4Group {
  __m256i zero;
  __m256 scale;
  Int4Group(const DenseBlock& block, int64_t at)
      : zero(_mm256_set1_epi32(8)), scale(_mm256_loadu_ps(block.scales + at)) {
    if (block.zeros != nullptr) {
      zero =
          _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(block.zeros + at)));
    }
  }
  // The codes are the low four bits of `words` shifted by 4 i.
  inline __m256 operator()(__m256i words, int i) const {
    const __m256i shifted = _mm256_srlv_epi32(words, _mm256_set1_epi32(4 * i));
    const __m256i code = _mm256_and_si256(shifted, _mm256_set1_epi32(15));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero)), scale);
  }
};

// k in [begin, end) to [k, panel] floats.
void UnpackInt4(const DenseBlock& block, int64_t begin, int64_t end, float* out) {
  for (int64_t k = begin; k < end;) {
    const int64_t group = k / block.group;
    const int64_t group_end = (group + 1) * block.group;
    const int64_t stop = group_end < end ? group_end : end;
    for (int v = 0; v < kVectors; ++v) {
      const Int4Group to_float(block, group * kPanel + v * kLanes);
      const auto* words = static_cast<const uint32_t*>(block.weights) + v * kLanes;
      const auto load = [&](int64_t i) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i / 8 * kPanel));
      };
      float* to = out + v * kLanes;
      int64_t i = k;
      for (; i < stop && i % 8 != 0; ++i) {
        _mm256_store_ps(to + (i - begin) * kPanel, to_float(load(i), static_cast<int>(i % 8)));
      }
      for (; i + 8 <= stop; i += 8) {
        const __m256i word = load(i);
        NIBBLE_UNROLL
        for (int j = 0; j < 8; ++j) {
          _mm256_store_ps(to + (i - begin + j) * kPanel, to_float(word, j));
        }
      }
      for (; i < stop; ++i) {
        _mm256_store_ps(to + (i - begin) * kPanel, to_float(load(i), static_cast<int>(i % 8)));
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
  alignas(32) float weights[kInt4Depth * kPanel];
  for (int64_t begin = 0; begin < block.k; begin += kInt4Depth) {
    const int64_t end = block.k - begin < kInt4Depth ? block.k : begin + kInt4Depth;
    UnpackInt4(block, begin, end, weights);
    MultiplyRows<F32>(block, reinterpret_cast<const uint8_t*>(weights), begin, end);
  }
}

}  // namespace nibble::kernels::avx2
