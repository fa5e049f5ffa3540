// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <cmath>

#include "kernels/norm/rms_norm_row.h"

namespace nibble::kernels::ref {

void NormalizeRow(const RmsNormRow& row) {
  double sum = 0.0;
  for (int64_t i = 0; i < row.hidden; ++i) {
    if (row.delta != nullptr) row.x[i] += row.delta[i];
    sum += static_cast<double>(row.x[i]) * static_cast<double>(row.x[i]);
  }
  const double mean = sum / static_cast<double>(row.hidden);
  const double norm = std::sqrt(mean + static_cast<double>(row.epsilon));
  for (int64_t i = 0; i < row.hidden; ++i) {
    const double x = static_cast<double>(row.x[i]);
    row.y[i] = static_cast<float>(x / norm * static_cast<double>(row.weight[i]));
  }
}

}  // namespace nibble::kernels::ref
