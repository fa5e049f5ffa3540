// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <cmath>

#include "kernels/moe/combine_row.h"

namespace nibble::kernels::ref {

void CombineColumns(const CombineRow& row) {
  for (int64_t c = 0; c < row.columns; ++c) {
    float sum =
        row.add ? std::fma(row.weights[0], row.y[0][c], row.out[c]) : row.weights[0] * row.y[0][c];
    for (int j = 1; j < row.num_rows; ++j) sum = std::fma(row.weights[j], row.y[j][c], sum);
    row.out[c] = sum;
  }
}

}  // namespace nibble::kernels::ref
