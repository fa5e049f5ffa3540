// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/quant/quantize_rows_kernels.h"

namespace nibble::kernels::ref {

// The definition that every variant meets bit for bit:
//   max    = max_k |x_k|, compared as integers, so that a NaN (whose bits are above infinity's)
//   wins scale  = max / 127, inverse = 127 / max, one float division each value  = x_k * inverse,
//   one float multiplication, then to the nearest integer, ties to even
// |value| <= 127 without a clamp: |x_k| * inverse <= 127 * (1 + 2^-23), which rounds to 127.
QuantizedRow QuantizeRow(const float* x, int64_t k, int8_t* values) {
  int32_t max_bits = 0;
  for (int64_t i = 0; i < k; ++i) {
    const int32_t bits = std::bit_cast<int32_t>(x[i]) & 0x7fffffff;
    if (bits > max_bits) max_bits = bits;
  }
  if (max_bits >= kNonFiniteBits || max_bits < kSmallestMaxBits) {
    for (int64_t i = 0; i < k; ++i) values[i] = 0;
    const bool finite = max_bits < kNonFiniteBits;
    return {finite ? 0.0F : std::numeric_limits<float>::quiet_NaN(), 0};
  }
  const float max = std::bit_cast<float>(max_bits);
  const float inverse = 127.0F / max;
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    const auto value = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
    values[i] = value;
    sum += value;
  }
  return {max / 127.0F, sum};
}

}  // namespace nibble::kernels::ref
