// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/int4_weight.h"

#include <algorithm>
#include <cmath>

namespace nibble::kernels {
namespace {

// (code - 8) * S + 128 must fit a byte: at code 0, S = -16 would need 256.
constexpr int kMaxFoldedInteger = 16;
constexpr int kMinFoldedInteger = -15;
// Keeps n * k and every byte count far inside int64.
constexpr int64_t kMaxDimension = int64_t{1} << 30;

// True when every scale of the channel is `channel` times an integer in range; writes the integers.
bool ScalesFit(const float* scales, int64_t num_groups, double channel, double tolerance,
               int8_t* integers) {
  for (int64_t g = 0; g < num_groups; ++g) {
    const double scale = scales[g];
    const double integer = std::nearbyint(scale / channel);
    if (!(integer >= kMinFoldedInteger && integer <= kMaxFoldedInteger)) return false;
    if (integer == 0.0) return false;
    if (std::abs(scale - integer * channel) > tolerance * std::abs(scale)) return false;
    integers[g] = static_cast<int8_t>(integer);
  }
  return true;
}

}  // namespace

absl::Status Int4Weight::Validate() const {
  if (n < 0 || n > kMaxDimension) {
    return InvalidArgument("4-bit weight: n is {}, the range is 0..{}", n, kMaxDimension);
  }
  if (k < 1 || k > kMaxDimension) {
    return InvalidArgument("4-bit weight: k is {}, the range is 1..{}", k, kMaxDimension);
  }
  if (group_size < 1 || group_size > kMaxDimension) {
    return InvalidArgument("4-bit weight: group_size is {}, the range is 1..{}", group_size,
                           kMaxDimension);
  }
  const auto size_error = [](const char* what, size_t actual, int64_t expected) {
    return InvalidArgument("4-bit weight: {} has {} elements, its shape needs {}", what, actual,
                           expected);
  };
  if (static_cast<int64_t>(codes.size()) != n * row_bytes()) {
    return size_error("codes", codes.size(), n * row_bytes());
  }
  if (static_cast<int64_t>(scales.size()) != n * num_groups()) {
    return size_error("scales", scales.size(), n * num_groups());
  }
  if (!zero_points.empty() && static_cast<int64_t>(zero_points.size()) != n * num_groups()) {
    return size_error("zero_points", zero_points.size(), n * num_groups());
  }
  for (size_t i = 0; i < scales.size(); ++i) {
    if (!std::isfinite(scales[i])) {
      return InvalidArgument("4-bit weight: scale [{}, {}] is {}",
                             static_cast<int64_t>(i) / num_groups(),
                             static_cast<int64_t>(i) % num_groups(), scales[i]);
    }
  }
  for (size_t i = 0; i < zero_points.size(); ++i) {
    if (zero_points[i] > 15) {
      return InvalidArgument("4-bit weight: zero point [{}, {}] is {}, the limit is 15",
                             static_cast<int64_t>(i) / num_groups(),
                             static_cast<int64_t>(i) % num_groups(), zero_points[i]);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<FoldedScales> FindFoldedScales(const Int4Weight& weight, float tolerance) {
  NIBBLE_RETURN_IF_ERROR(weight.Validate());
  if (!weight.zero_points.empty()) {
    return absl::FailedPreconditionError(
        "scales do not fold: the weight has zero points, the folded form is symmetric");
  }
  const int64_t num_groups = weight.num_groups();
  FoldedScales folded;
  folded.integers.resize(static_cast<size_t>(weight.n * num_groups));
  folded.channel.resize(static_cast<size_t>(weight.n));
  for (int64_t row = 0; row < weight.n; ++row) {
    const float* scales = weight.scales.data() + row * num_groups;
    int8_t* integers = folded.integers.data() + row * num_groups;
    float largest = 0.0F;
    for (int64_t g = 0; g < num_groups; ++g) {
      largest = std::max(largest, std::abs(scales[g]));
    }
    if (largest == 0.0F) {
      for (int64_t g = 0; g < num_groups; ++g) integers[g] = 1;
      folded.channel[static_cast<size_t>(row)] = 0.0F;
      continue;
    }
    // The largest scale is some integer times the channel scale: the smallest such integer gives
    // the largest channel scale.
    bool found = false;
    for (int top = 1; top <= kMaxFoldedInteger && !found; ++top) {
      const float channel = largest / static_cast<float>(top);
      if (channel > 0.0F && ScalesFit(scales, num_groups, channel, tolerance, integers)) {
        folded.channel[static_cast<size_t>(row)] = channel;
        found = true;
      }
    }
    if (!found) {
      return absl::FailedPreconditionError(
          fmt::format("scales do not fold: those of output channel {} are no integers in {}..{} "
                      "but 0 times one number",
                      row, kMinFoldedInteger, kMaxFoldedInteger));
    }
  }
  return folded;
}

}  // namespace nibble::kernels
