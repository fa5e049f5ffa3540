// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// An 8-bit weight matrix in its plain form (the W of W8A8): symmetric, one scale per output
// channel.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"

namespace nibble::kernels {

// w[n, k] = scales[n] * codes[n, k].
struct Int8Weight {
  int64_t n = 0;              // output channels
  int64_t k = 0;              // input channels
  std::vector<int8_t> codes;  // [n, k]
  std::vector<float> scales;  // [n], finite

  // Sizes of the vectors against n and k; finite scales.
  absl::Status Validate() const;
};

// Round to nearest, scale = max|row| / 127, codes in -127..127. INVALID_ARGUMENT for NaN or
// infinity, naming the coordinate. Deterministic.
absl::StatusOr<Int8Weight> QuantizeInt8(const float* weights, int64_t n, int64_t k,
                                        ThreadPool* pool);

}  // namespace nibble::kernels
