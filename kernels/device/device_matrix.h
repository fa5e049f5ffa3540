// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Rows of activations in device memory, as the ops of kernels/*/cuda take them.
//
// The residual stream is float32. What linear layers write (and what reads it: RoPE, attention,
// SwiGLU, the next addition to the residual stream) is of the model's activation type: bf16, or
// float32 where exactness matters more than bytes. What linear layers read is of the type that the
// layer takes: int8 with a scale for each row, or the type of its weights.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::kernels::cuda {

struct DeviceMatrix {
  void* data = nullptr;        // [num_rows, stride] of dtype; aligned to 16 bytes
  DType dtype = DType::kBf16;  // f32, bf16 or f16
  int64_t stride = 0;          // elements between rows; a multiple of 16 bytes
};

// What an op writes for a linear layer: one of the two, or both.
struct RowOutput {
  DeviceMatrix values;      // not written where values.data is null
  QuantizedRows quantized;  // device memory; not written where quantized.values is null
};

}  // namespace nibble::kernels::cuda
