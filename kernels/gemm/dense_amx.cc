// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Dense bfloat16 weights times activations rounded to bfloat16.

#include <immintrin.h>

#include <cstdint>

#include "kernels/gemm/amx_kernels.h"
#include "kernels/gemm/amx_multiply.h"

namespace nibble::kernels::amx {
namespace {

// Round to nearest even into the low half of each lane; NaN stays NaN, its quiet bit set.
inline __m512i ToBf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
}

inline __m512i Load16(const float* a, int64_t count) {
  return ToBf16(_mm512_maskz_loadu_ps(avx512vnni::FirstLanes(count), a));
}

}  // namespace

void ArrangeBf16(const Bf16Rows& rows) {
  const float* from[kAmxTileRows];
  for (int64_t r = 0; r < kAmxTileRows; ++r) {
    from[r] = r < rows.rows ? RowAt(rows.a, rows.a_stride, rows.a_rows, r) : rows.a;
  }
  for (int64_t step = 0; step < rows.num_steps; ++step) {
    const int64_t k = step * (kAmxRowBytes / 2);
    for (int64_t r = 0; r < kAmxTileRows; ++r) {
      uint8_t* out = rows.out + (step * kAmxTileRows + r) * kAmxRowBytes;
      const float* a = from[r] + k;
      const int64_t count = r < rows.rows ? rows.k - k : 0;
      _mm256_store_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(Load16(a, count)));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + 32),
                         _mm512_cvtepi32_epi16(Load16(a + kLanes, count - kLanes)));
    }
  }
}

void Bf16(const AmxBlock& block) {
  Multiply(block, StoredForm<Bf16Pairs>{block});
  ForSums(block, [&](int64_t row, int64_t column, __m512i sum) {
    StoreOutputs(block, row, column, _mm512_castsi512_ps(sum));
  });
}

}  // namespace nibble::kernels::amx
