// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Dynamic int8 quantization of activations, one scale per token (row).
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/thread_pool.h"

namespace nibble::kernels {

// Int8 activations as the W4A8 GEMM reads them. Views; the caller owns the memory.
//   a[m, k] ~ scales[m] * values[m, k]
struct QuantizedRows {
  int8_t* values = nullptr;  // [num_rows, stride], values in -127..127
  float* scales = nullptr;   // [num_rows]; 0 for a row of zeros
  int32_t* sums =
      nullptr;         // [num_rows], sum over k of values (exact; used by unsigned-weight forms)
  int64_t stride = 0;  // elements between rows, >= k
};

// values = round-half-even(x / scale), scale = max|x| / 127. All variants are bit-equal to the
// reference. A row with a NaN or an infinity gets a NaN scale and values of 0, so that the fault
// shows in the output instead of vanishing.
void QuantizeRows(const float* x, int64_t x_stride, int64_t num_rows, int64_t k,
                  const QuantizedRows& out, Isa isa, ThreadPool* pool);
// The same on the calling thread alone: for ops that quantize what they just wrote, within their
// own loop.
void QuantizeRowRange(const float* x, int64_t x_stride, int64_t num_rows, int64_t k,
                      const QuantizedRows& out, Isa isa);

}  // namespace nibble::kernels
