// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Comparisons that say where and by how much two matrices differ.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "fmt/core.h"
#include "gtest/gtest.h"

namespace nibble::testing {

// A matrix in memory: element (row, column) is data[row * stride + column].
template <typename T>
struct Matrix {
  const T* data;
  int64_t rows;
  int64_t columns;
  int64_t stride;
};

// Succeeds when |actual - expected| <= bound(row, column) everywhere (NaN equals NaN only). A
// failure names the worst coordinate, both values, its bound and how many elements are outside.
template <typename T, typename Bound>
::testing::AssertionResult AllWithin(const Matrix<T>& actual, const Matrix<T>& expected,
                                     const Bound& bound) {
  int64_t num_outside = 0;
  int64_t worst_row = 0;
  int64_t worst_column = 0;
  double worst_excess = -1.0;
  for (int64_t row = 0; row < expected.rows; ++row) {
    for (int64_t column = 0; column < expected.columns; ++column) {
      const auto a = static_cast<double>(actual.data[row * actual.stride + column]);
      const auto e = static_cast<double>(expected.data[row * expected.stride + column]);
      if ((std::isnan(a) && std::isnan(e)) || a == e) continue;
      const double allowed = bound(row, column);
      const double difference = std::abs(a - e);
      if (difference <= allowed) continue;
      ++num_outside;
      const double excess = std::isnan(difference) ? INFINITY : difference - allowed;
      if (excess > worst_excess) {
        worst_excess = excess;
        worst_row = row;
        worst_column = column;
      }
    }
  }
  if (num_outside == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << fmt::format(
             "{} of {} elements outside; worst at ({}, {}): actual {}, expected {}, bound {}",
             num_outside, expected.rows * expected.columns, worst_row, worst_column,
             actual.data[worst_row * actual.stride + worst_column],
             expected.data[worst_row * expected.stride + worst_column],
             bound(worst_row, worst_column));
}

// Bit-exact: bound 0.
template <typename T>
::testing::AssertionResult AllEqual(const Matrix<T>& actual, const Matrix<T>& expected) {
  return AllWithin(actual, expected, [](int64_t, int64_t) { return 0.0; });
}

}  // namespace nibble::testing
