// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <cmath>

#include "kernels/activation/silu_mul_row.h"

namespace nibble::kernels::ref {

void SiluMulRow(const float* gate, const float* up, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double g = static_cast<double>(gate[i]);
    y[i] = static_cast<float>(g / (1.0 + std::exp(-g)) * static_cast<double>(up[i]));
  }
}

}  // namespace nibble::kernels::ref
