// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/gemm/gemm_kernels.h"

namespace nibble::kernels::avx2 {
namespace {

inline __m128i Load16(const int8_t* at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
}
inline void Store16(int8_t* at, __m128i value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), value);
}

// Four rows' 16 values from k on to [4, rows, 4]: four dwords of each of four rows, transposed.
inline void CopyFourRows(const int8_t* const from[4], int64_t k, int64_t rows, int8_t* out) {
  const __m128i r0 = Load16(from[0] + k);
  const __m128i r1 = Load16(from[1] + k);
  const __m128i r2 = Load16(from[2] + k);
  const __m128i r3 = Load16(from[3] + k);
  const __m128i low01 = _mm_unpacklo_epi32(r0, r1);
  const __m128i low23 = _mm_unpacklo_epi32(r2, r3);
  const __m128i high01 = _mm_unpackhi_epi32(r0, r1);
  const __m128i high23 = _mm_unpackhi_epi32(r2, r3);
  Store16(out, _mm_unpacklo_epi64(low01, low23));
  Store16(out + rows * 4, _mm_unpackhi_epi64(low01, low23));
  Store16(out + rows * 8, _mm_unpacklo_epi64(high01, high23));
  Store16(out + rows * 12, _mm_unpackhi_epi64(high01, high23));
}

inline const int8_t* Row(const TileSource& s, int64_t row) {
  return RowAt(s.a, s.a_stride, s.a_rows, row);
}

// `length` values of each row from `begin` on to [length rounded up to step / 4, rows, 4].
void CopyRows(const TileSource& s, int64_t begin, int64_t length, int8_t* out) {
  const int64_t whole = length / 16 * 16;
  int64_t row = 0;
  for (; row + 4 <= s.rows; row += 4) {
    const int8_t* const from[4] = {Row(s, row) + begin, Row(s, row + 1) + begin,
                                   Row(s, row + 2) + begin, Row(s, row + 3) + begin};
    for (int64_t k = 0; k < whole; k += 16) {
      CopyFourRows(from, k, s.rows, out + k * s.rows + row * 4);
    }
  }
  for (; row < s.rows; ++row) {
    const int8_t* from = Row(s, row) + begin;
    for (int64_t k = 0; k < whole; k += 4) {
      __builtin_memcpy(out + k * s.rows + row * 4, from + k, 4);
    }
  }
  const int64_t padded = (length + s.step - 1) / s.step * s.step;
  for (int64_t k = whole; k < padded; ++k) {
    for (row = 0; row < s.rows; ++row) {
      const int8_t value = k < length ? Row(s, row)[begin + k] : int8_t{0};
      out[(k / 4 * s.rows + row) * 4 + k % 4] = value;
    }
  }
}

int32_t Sum(const int8_t* a, int64_t length) {
  __m256i sums = _mm256_setzero_si256();
  int64_t k = 0;
  for (; k + 32 <= length; k += 32) {
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + k));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), values);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  int32_t result = _mm_cvtsi128_si32(sum);
  for (; k < length; ++k) result += a[k];
  return result;
}

}  // namespace

void ArrangeTile(const TileSource& s) {
  const bool gaps = s.group % s.step != 0;
  if (s.tile != nullptr && !gaps) CopyRows(s, 0, s.k, s.tile);
  int8_t* out = s.tile;
  int32_t* starts = s.group_starts;
  for (int64_t begin = 0; begin < s.k && (gaps || starts != nullptr); begin += s.group) {
    const int64_t length = s.k - begin < s.group ? s.k - begin : s.group;
    if (s.tile != nullptr && gaps) {
      CopyRows(s, begin, length, out);
      out += (length + s.step - 1) / s.step * s.step * s.rows;
    }
    if (starts != nullptr) {
      for (int64_t row = 0; row < s.rows; ++row) {
        *starts++ = s.group_factor * Sum(Row(s, row) + begin, length);
      }
    }
  }
}

}  // namespace nibble::kernels::avx2
