// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// RMSNorm on a device: kernels/norm/rms_norm.h, with the same fused addition and quantization.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

struct RmsNormArgs {
  int64_t num_rows = 0;
  int64_t hidden = 0;  // a multiple of 8, at most 65536
  float* x = nullptr;  // [num_rows, x_stride]; when delta.data is given, x += delta first, in place
  int64_t x_stride = 0;
  DeviceMatrix delta;             // [num_rows, hidden]
  const float* weight = nullptr;  // [hidden]
  float epsilon = 1e-5F;
  RowOutput out;  // [num_rows, hidden]; overlaps nothing else
};

// A row's bits depend on the row alone. int8 codes are those of QuantizeRows of the float result.
// Enqueued on `stream`; INVALID_ARGUMENT for sizes beyond the limits above.
absl::Status RmsNorm(const RmsNormArgs& args, cudaStream_t stream);

// What RmsNorm refuses, for kernels that do it on their way (rms_norm_row.cuh).
absl::Status CheckRmsNorm(const RmsNormArgs& args);

}  // namespace nibble::kernels::cuda
