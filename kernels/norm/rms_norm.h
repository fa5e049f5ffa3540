// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// RMSNorm (arXiv:1910.07467, eq. 4), with the residual addition before it and int8 quantization
// after it fused in.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::kernels {

// y = x / sqrt(mean(x^2) + epsilon) * weight, per row.
struct RmsNormArgs {
  int64_t num_rows = 0;
  int64_t hidden = 0;
  float* x =
      nullptr;  // [num_rows, x_stride]; when `delta` is given, x += delta happens first, in place
  int64_t x_stride = 0;
  const float* delta = nullptr;  // [num_rows, delta_stride] or null
  int64_t delta_stride = 0;
  const float* weight = nullptr;  // [hidden]
  float epsilon = 1e-5F;
  float* y = nullptr;  // [num_rows, y_stride] or null; may equal x when delta is null
  int64_t y_stride = 0;
  QuantizedRows y8;  // int8 output, if y8.values is not null. At least one output is given.
};

// Row results depend on the row alone. Sums of squares are accumulated in a fixed order (16 float
// lanes, then a tree): the variants agree with the reference within rounding, not bit for bit.
// Where int8 is the only output, threads keep scratch memory of one row for their next call;
// std::bad_alloc when there is none.
void RmsNorm(const RmsNormArgs& args, Isa isa, ThreadPool* pool);

}  // namespace nibble::kernels
