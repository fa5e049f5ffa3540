// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/int8_weight.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

namespace nibble::kernels {
namespace {

// Keeps n * k far inside int64.
constexpr int64_t kMaxDimension = int64_t{1} << 30;
constexpr double kMaxCode = 127.0;

absl::Status CheckShape(int64_t n, int64_t k) {
  if (n < 0 || n > kMaxDimension) {
    return InvalidArgument("8-bit weight: n is {}, the range is 0..{}", n, kMaxDimension);
  }
  if (k < 1 || k > kMaxDimension) {
    return InvalidArgument("8-bit weight: k is {}, the range is 1..{}", k, kMaxDimension);
  }
  return absl::OkStatus();
}

// The largest magnitude; NaN or infinity where the row has one.
float Largest(const float* row, int64_t k) {
  float largest = 0.0F;
  float nonfinite = 0.0F;  // stays 0 while every x is finite: x * 0 is NaN else
  for (int64_t i = 0; i < k; ++i) {
    largest = std::max(largest, std::abs(row[i]));
    nonfinite += row[i] * 0.0F;
  }
  return largest + nonfinite;
}

// Returns the row's scale.
float QuantizeRow(const float* row, int64_t k, float largest, int8_t* codes) {
  const auto scale = static_cast<float>(static_cast<double>(largest) / kMaxCode);
  if (scale == 0.0F) return 0.0F;  // codes are zeros already
  // Adding 1.5 * 2^52 leaves no bits for a fraction: round to nearest, ties to even, in one
  // instruction of every CPU. Below 2^-126 a scale is rounded to few bits, and codes need the
  // clamp.
  constexpr double kRound = 0x1.8p52;
  for (int64_t i = 0; i < k; ++i) {
    const double code =
        (static_cast<double>(row[i]) / static_cast<double>(scale) + kRound) - kRound;
    codes[i] = static_cast<int8_t>(std::clamp(code, -kMaxCode, kMaxCode));
  }
  return scale;
}

}  // namespace

absl::Status Int8Weight::Validate() const {
  NIBBLE_RETURN_IF_ERROR(CheckShape(n, k));
  const auto size_error = [](const char* what, size_t actual, int64_t expected) {
    return InvalidArgument("8-bit weight: {} has {} elements, its shape needs {}", what, actual,
                           expected);
  };
  if (static_cast<int64_t>(codes.size()) != n * k) return size_error("codes", codes.size(), n * k);
  if (static_cast<int64_t>(scales.size()) != n) return size_error("scales", scales.size(), n);
  for (size_t i = 0; i < scales.size(); ++i) {
    if (!std::isfinite(scales[i])) {
      return InvalidArgument("8-bit weight: scale [{}] is {}", i, scales[i]);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Int8Weight> QuantizeInt8(const float* weights, int64_t n, int64_t k,
                                        ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(CheckShape(n, k));
  Int8Weight result;
  result.n = n;
  result.k = k;
  result.codes.resize(static_cast<size_t>(n * k));
  result.scales.resize(static_cast<size_t>(n));
  std::atomic<int64_t> first_bad{n};  // the lowest row, so that the message is deterministic
  pool->ParallelFor(n, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float largest = Largest(weights + row * k, k);
      if (!std::isfinite(largest)) {
        int64_t seen = first_bad.load();
        while (row < seen && !first_bad.compare_exchange_weak(seen, row)) {
        }
        continue;
      }
      result.scales[static_cast<size_t>(row)] =
          QuantizeRow(weights + row * k, k, largest, result.codes.data() + row * k);
    }
  });
  if (const int64_t row = first_bad.load(); row < n) {
    const float* bad = std::find_if_not(weights + row * k, weights + (row + 1) * k,
                                        [](float w) { return std::isfinite(w); });
    return InvalidArgument("cannot quantize: weight [{}, {}] is {}", row, bad - (weights + row * k),
                           *bad);
  }
  return result;
}

}  // namespace nibble::kernels
