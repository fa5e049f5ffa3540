// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/module_error.h"

#include <cmath>
#include <utility>
#include <variant>
#include <vector>

namespace nibble::quantize {

double BitsPerWeight(const QuantizedWeight& weight) {
  return std::visit(
      [](const auto& value) {
        const double bits = 8.0 * static_cast<double>(value.codes.size()) +
                            32.0 * static_cast<double>(value.scales.size());
        return bits / (static_cast<double>(value.n) * static_cast<double>(value.k));
      },
      weight);
}

// Rows are summed in order, whatever thread did them.
WeightError MeasureWeightError(const Matrix& matrix, const QuantizedWeight& weight,
                               ThreadPool* pool) {
  const std::vector<float> rounded = Dequantize(weight);
  std::vector<std::pair<double, double>> rows(static_cast<size_t>(matrix.n));
  pool->ParallelFor(matrix.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double error = 0.0;
      double norm = 0.0;
      for (int64_t i = row * matrix.k; i < (row + 1) * matrix.k; ++i) {
        const double value = matrix.weight[static_cast<size_t>(i)];
        const double difference = value - rounded[static_cast<size_t>(i)];
        error += difference * difference;
        norm += value * value;
      }
      rows[static_cast<size_t>(row)] = {error, norm};
    }
  });
  double error = 0.0;
  double norm = 0.0;
  for (const auto& [row_error, row_norm] : rows) {
    error += row_error;
    norm += row_norm;
  }
  return {.norm = std::sqrt(norm), .error = norm > 0.0 ? std::sqrt(error / norm) : 0.0};
}

}  // namespace nibble::quantize
