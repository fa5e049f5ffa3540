// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// How far results are from what they should be.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace nibble::testing {

struct Difference {
  double relative = 0.0;  // root of the mean square, over that of what is expected
  double worst = 0.0;     // largest, over the largest expected value
};

inline Difference Compare(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  EXPECT_FALSE(want.empty());
  Difference result;
  double error = 0.0;
  double power = 0.0;
  double largest = 0.0;
  for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - want[i]);
    result.worst = difference <= result.worst ? result.worst : difference;  // NaN stays
    error += difference * difference;
    power += static_cast<double>(want[i]) * want[i];
    largest = std::max(largest, std::abs(static_cast<double>(want[i])));
  }
  result.relative = std::sqrt(error / power);
  result.worst /= largest;
  return result;
}

}  // namespace nibble::testing
