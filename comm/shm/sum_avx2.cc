// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <immintrin.h>

#include <cstdint>

#include "comm/shm/sum.h"

namespace nibble::comm::shm::avx2 {

void Sum(const float* const* sources, int num_sources, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    __m256 sum[4];
    for (int j = 0; j < 4; ++j) sum[j] = _mm256_loadu_ps(sources[0] + i + 8 * j);
    for (int source = 1; source < num_sources; ++source) {
      const float* const x = sources[source] + i;
      for (int j = 0; j < 4; ++j) sum[j] = _mm256_add_ps(sum[j], _mm256_loadu_ps(x + 8 * j));
    }
    for (int j = 0; j < 4; ++j) _mm256_storeu_ps(out + i + 8 * j, sum[j]);
  }
  for (; i < count; ++i) {
    float sum = sources[0][i];
    for (int source = 1; source < num_sources; ++source) sum += sources[source][i];
    out[i] = sum;
  }
}

}  // namespace nibble::comm::shm::avx2
