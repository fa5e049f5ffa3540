// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/integer_scales.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace nibble::kernels {
namespace {

constexpr int64_t kMaxActivation = 127;  // QuantizedRows.values
constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

// sum_k |codes - zero| per group of one channel.
void SumMagnitudes(const Int4Weight& weight, int64_t row, std::vector<int64_t>* sums) {
  for (int64_t g = 0; g < weight.num_groups(); ++g) {
    const int64_t begin = g * weight.group_size;
    const int64_t end = std::min(begin + weight.group_size, weight.k);
    const int zero = weight.Zero(row, begin);
    int64_t sum = 0;
    for (int64_t k = begin; k < end; ++k) sum += std::abs(weight.Code(row, k) - zero);
    (*sums)[static_cast<size_t>(g)] = sum;
  }
}

int64_t Bound(const std::vector<int64_t>& magnitudes, const int16_t* integers) {
  int64_t bound = 0;
  for (size_t g = 0; g < magnitudes.size(); ++g) {
    bound += std::abs(int64_t{integers[g]}) * magnitudes[g];
  }
  return kMaxActivation * bound;
}

absl::Status FindForChannel(const Int4Weight& weight, int64_t row,
                            const std::vector<int64_t>& magnitudes, IntegerScales* result) {
  const int64_t num_groups = weight.num_groups();
  const float* scales = weight.scales.data() + row * num_groups;
  int16_t* integers = result->integers.data() + row * num_groups;
  double most = 0.0;
  double least = 0.0;
  for (int64_t g = 0; g < num_groups; ++g) {
    most = std::max(most, static_cast<double>(scales[g]));
    least = std::min(least, static_cast<double>(scales[g]));
  }
  // One sign throughout leaves all eight bits to the magnitude (c carries the sign).
  const bool mixed = most > 0.0 && least < 0.0;
  const double largest = most >= -least ? most : least;
  if (largest == 0.0) return absl::OkStatus();  // S = 0, c = 0
  int64_t top = mixed ? 127 : 255;
  for (;;) {
    const double amplifier = static_cast<double>(top) / largest;
    for (int64_t g = 0; g < num_groups; ++g) {
      integers[g] = static_cast<int16_t>(std::nearbyint(scales[g] * amplifier));
    }
    const int64_t bound = Bound(magnitudes, integers);
    if (bound <= kInt32Max) {
      result->channel[static_cast<size_t>(row)] =
          static_cast<float>(largest / static_cast<double>(top));
      return absl::OkStatus();
    }
    if (top == 1) {
      return InvalidArgument(
          "output channel {} does not fit int32: with group scales of 1 its sums reach {}, the "
          "limit is {} (k is {})",
          row, bound, kInt32Max, weight.k);
    }
    // Rounding moves the bound a little, so aim at the limit and then step down.
    const auto aim = static_cast<int64_t>(
        static_cast<double>(top) * static_cast<double>(kInt32Max) / static_cast<double>(bound));
    top = std::clamp(aim, int64_t{1}, top - 1);
  }
}

}  // namespace

int64_t LargestSum(const Int4Weight& weight, int64_t row, const int16_t* integers) {
  std::vector<int64_t> magnitudes(static_cast<size_t>(weight.num_groups()));
  SumMagnitudes(weight, row, &magnitudes);
  return Bound(magnitudes, integers);
}

absl::StatusOr<IntegerScales> FindIntegerScales(const Int4Weight& weight) {
  NIBBLE_RETURN_IF_ERROR(weight.Validate());
  IntegerScales result;
  result.integers.resize(static_cast<size_t>(weight.n * weight.num_groups()));
  result.channel.resize(static_cast<size_t>(weight.n));
  std::vector<int64_t> magnitudes(static_cast<size_t>(weight.num_groups()));
  for (int64_t row = 0; row < weight.n; ++row) {
    SumMagnitudes(weight, row, &magnitudes);
    NIBBLE_RETURN_IF_ERROR(FindForChannel(weight, row, magnitudes, &result));
  }
  return result;
}

}  // namespace nibble::kernels
