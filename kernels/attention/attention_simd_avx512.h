// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sixteen floats in one register: what attention_tile_impl.h is written against, for AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/attention/attention_tile.h"
#include "kernels/device/math_avx512.h"

namespace nibble::kernels::avx512vnni {
namespace {

struct Simd {
  using Floats = __m512;

  // Strips of a tile scored together, and columns (of 16) of values accumulated together, for some
  // rows: rows x 4 of the 32 registers, up to 6 x 4, beside 4 operands.
  static constexpr int kMaxRows = 6;
  static constexpr int Strips(int) { return 4; }
  static constexpr int Columns(int) { return 4; }

  static Floats Zero() { return _mm512_setzero_ps(); }
  static Floats Set1(float x) { return _mm512_set1_ps(x); }
  static Floats Load(const float* from) { return _mm512_loadu_ps(from); }
  static void Store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static Floats Add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats Sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats Mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats Max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats MulAdd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats Exp(Floats x) { return avx512vnni::Exp(x); }
  static float ReduceAdd(Floats x) { return avx512vnni::ReduceAdd(x); }
  static float ReduceMax(Floats x) { return avx512vnni::ReduceMax(x); }
  // Lanes whose bit is set from `a`, the others from `b`.
  static Floats Select(uint32_t lanes, Floats a, Floats b) {
    return _mm512_mask_mov_ps(b, static_cast<__mmask16>(lanes), a);
  }

  // Sixteen elements from element `at` on.
  template <KvElement kElement>
  static Floats LoadAs(const void* from, int64_t at) {
    if constexpr (kElement == KvElement::kF32) {
      return _mm512_loadu_ps(static_cast<const float*>(from) + at);
    } else if constexpr (kElement == KvElement::kI8) {
      const auto* bytes = static_cast<const int8_t*>(from) + at;
      return _mm512_cvtepi32_ps(
          _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
    } else {
      const auto* words = static_cast<const uint16_t*>(from) + at;
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
      if constexpr (kElement == KvElement::kF16) return _mm512_cvtph_ps(bits);
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
  }
};

}  // namespace
}  // namespace nibble::kernels::avx512vnni
