// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// SwiGLU's elementwise half on a device: kernels/activation/silu_mul.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "kernels/device/device_matrix.h"

namespace nibble::kernels::cuda {

struct SiluMulArgs {
  int64_t num_rows = 0;
  int64_t intermediate = 0;
  DeviceMatrix gate_up;  // [num_rows, 2 * intermediate]: gate, then up
  RowOutput out;         // [num_rows, intermediate]
  // In device memory, or null: rows from *valid_rows on are left alone.
  const int32_t* valid_rows = nullptr;
  // SiluMulWorkspaceBytes() of device memory, aligned to 16 bytes, or null. With it few rows to
  // int8 (decode) are cut among blocks, which find the scale together; without it one block has a
  // row. The bits are the same. Zero before the first call, and left so by each; one call at a
  // time.
  void* workspace = nullptr;
};
int64_t SiluMulWorkspaceBytes(int64_t max_rows);

absl::Status SiluMul(const SiluMulArgs& args, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
