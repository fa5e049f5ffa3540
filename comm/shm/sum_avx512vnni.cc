// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "comm/shm/sum.h"

namespace nibble::comm::shm::avx512vnni {

void Sum(const float* const* sources, int num_sources, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    __m512 sum[4];
    for (int j = 0; j < 4; ++j) sum[j] = _mm512_loadu_ps(sources[0] + i + 16 * j);
    for (int source = 1; source < num_sources; ++source) {
      const float* const x = sources[source] + i;
      for (int j = 0; j < 4; ++j) sum[j] = _mm512_add_ps(sum[j], _mm512_loadu_ps(x + 16 * j));
    }
    for (int j = 0; j < 4; ++j) _mm512_storeu_ps(out + i + 16 * j, sum[j]);
  }
  for (; i < count; i += 16) {
    const int64_t left = count - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1 << left) - 1);
    __m512 sum = _mm512_maskz_loadu_ps(mask, sources[0] + i);
    for (int source = 1; source < num_sources; ++source) {
      sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, sources[source] + i));
    }
    _mm512_mask_storeu_ps(out + i, mask, sum);
  }
}

}  // namespace nibble::comm::shm::avx512vnni
