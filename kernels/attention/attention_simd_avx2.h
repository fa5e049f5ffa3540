// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sixteen floats in two registers: what attention_tile_impl.h is written against, for AVX2. The
// operations of AVX-512 in the same order, so that the results are its to the bit.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/attention/attention_tile.h"
#include "kernels/device/math_avx2.h"

namespace nibble::kernels::avx2 {
namespace {

struct Floats16 {
  __m256 low;
  __m256 high;
};

struct Simd {
  using Floats = Floats16;

  // Strips of a tile scored together, and columns (of 16) of values accumulated together, for some
  // rows: of 16 registers at most 12, and at least 8 where the rows allow, because two additions
  // start in each of four cycles that one takes.
  static constexpr int kMaxRows = 6;
  static constexpr int Strips(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
  static constexpr int Columns(int rows) { return Strips(rows); }

  static Floats Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Floats Set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Floats Load(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
  static void Store(float* to, Floats x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
  }
  static Floats Add(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static Floats Sub(Floats a, Floats b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  static Floats Mul(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Floats Max(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static Floats MulAdd(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static Floats Exp(Floats x) { return {avx2::Exp(x.low), avx2::Exp(x.high)}; }
  static float ReduceAdd(Floats x) { return avx2::ReduceAdd(_mm256_add_ps(x.low, x.high)); }
  static float ReduceMax(Floats x) { return avx2::ReduceMax(_mm256_max_ps(x.low, x.high)); }
  // Lanes whose bit is set from `a`, the others from `b`.
  static Floats Select(uint32_t lanes, Floats a, Floats b) {
    return {SelectHalf(lanes, a.low, b.low), SelectHalf(lanes >> 8, a.high, b.high)};
  }

  // Sixteen elements from element `at` on.
  template <KvElement kElement>
  static Floats LoadAs(const void* from, int64_t at) {
    if constexpr (kElement == KvElement::kF32) {
      return Load(static_cast<const float*>(from) + at);
    } else if constexpr (kElement == KvElement::kI8) {
      const auto* bytes = static_cast<const int8_t*>(from) + at;
      const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
      return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
              _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all)))};
    } else {
      const auto* words = static_cast<const uint16_t*>(from) + at;
      return {LoadHalf<kElement>(words), LoadHalf<kElement>(words + 8)};
    }
  }

 private:
  static __m256 SelectHalf(uint32_t lanes, __m256 a, __m256 b) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bit);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)));
  }

  template <KvElement kElement>
  static __m256 LoadHalf(const uint16_t* words) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
    if constexpr (kElement == KvElement::kF16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
};

}  // namespace
}  // namespace nibble::kernels::avx2
