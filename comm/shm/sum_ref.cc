// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/sum.h"

namespace nibble::comm::shm::ref {

void Sum(const float* const* sources, int num_sources, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    float sum = sources[0][i];
    for (int source = 1; source < num_sources; ++source) sum += sources[source][i];
    out[i] = sum;
  }
}

}  // namespace nibble::comm::shm::ref
