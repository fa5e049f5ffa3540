// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// W8A8 by cuBLASLt, as engines without kernels of their own have it: sums in memory, scales by a
// second kernel. What our W8A8 is compared with; models never run it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/status.h"
#include "kernels/device/device_matrix.h"
#include "kernels/gemm/cuda/cublaslt.h"
#include "kernels/quant/quantize_rows.h"

namespace nibble::bench {

// With the bits of kernels::Run: D = float(sum) * (a's scale * b's scale). Device memory.
struct LtInt8Args {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  kernels::QuantizedRows a;       // stride a multiple of 16
  const int8_t* b = nullptr;      // [n, b_stride], row-major
  int64_t b_stride = 0;           // a multiple of 16
  const float* scales = nullptr;  // [n]
  kernels::cuda::DeviceMatrix d;  // bf16
};
int64_t LtInt8WorkspaceBytes(int64_t m, int64_t n);
absl::Status MultiplyInt8(kernels::cuda::CublasLt* lt, const LtInt8Args& args, void* workspace,
                          int64_t workspace_bytes, cudaStream_t stream);

}  // namespace nibble::bench
