// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Integer Scale (arXiv:2405.14597) with one amplifier per output channel, and the proof that int32
// sums hold.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "kernels/quant/int4_weight.h"

namespace nibble::kernels {

struct IntegerScales {
  std::vector<int16_t> integers;  // [n, num_groups] S: 0..255, or -127..127 where signs are mixed
  std::vector<float> channel;     // [n] c, the inverse of the amplifier: scales[n, g] ~ S * c[n]
};

// For every channel the largest amplifier with |S| <= 255 (127 where some scales are negative) and
//   127 * sum_g |S_g| * sum_k |codes - zero| < 2^31,
// so that no int32 sum of products with int8 activations, whole or partial, can overflow.
// INVALID_ARGUMENT naming the channel when even |S| <= 1 does not fit.
absl::StatusOr<IntegerScales> FindIntegerScales(const Int4Weight& weight);

// The same bound for given integers: 127 * sum_g |S_g| * sum_k |codes - zero| of one channel.
int64_t LargestSum(const Int4Weight& weight, int64_t row, const int16_t* integers);

}  // namespace nibble::kernels
