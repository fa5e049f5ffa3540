// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// SwiGLU's elementwise half: y = silu(gate) * up, silu(v) = v / (1 + exp(-v)) (arXiv:2002.05202).
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::kernels {

struct SiluMulArgs {
  int64_t num_rows = 0;
  int64_t intermediate = 0;
  const float* gate_up = nullptr;  // [num_rows, gate_up_stride]: gate in columns [0, intermediate),
                                   // up in the next ones
  int64_t gate_up_stride = 0;
  float* y = nullptr;  // [num_rows, y_stride] or null
  int64_t y_stride = 0;
  QuantizedRows y8;  // int8 output, if y8.values is not null
};

// Where int8 is the only output, threads keep scratch memory of one row for their next call;
// std::bad_alloc when there is none.
void SiluMul(const SiluMulArgs& args, Isa isa, ThreadPool* pool);

}  // namespace nibble::kernels
