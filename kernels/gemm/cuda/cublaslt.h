// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// cuBLASLt, opened at run time: the program starts without it, and is built without it for the
// emulator.
//
//   auto lt = CublasLt::Open();                 // UNAVAILABLE: go on with our own kernels
//   MultiplyDense(lt->get(), {.m = ...}, bias, workspace, workspace_bytes, stream);
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "base/dtype.h"
#include "base/status.h"

namespace nibble::kernels::cuda {

// D [m, n] = A [m, k] * B^T, B [n, k]; row-major, strides in elements, device memory.
struct LtMatmul {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  DType type = DType::kBf16;  // of A and B; sums are float32, of int8 int32
  const void* a = nullptr;
  int64_t a_stride = 0;
  const void* b = nullptr;
  int64_t b_stride = 0;
  DType d_type = DType::kF32;
  void* d = nullptr;
  int64_t d_stride = 0;
  bool accumulate = false;  // D += A * B^T
};

// What the library multiplies: bf16 into f32 or bf16, f16 into f32 or f16, int8 into int32.
bool LtTakes(DType type, DType d_type);

// Of the device that is current when it is opened, and of later calls. Thread-safe.
class CublasLt {
 public:
  static constexpr const char* kFile = "libcublasLt.so.13";
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what its kernels ask for at most

  // UNAVAILABLE says what is missing. `file`: for tests.
  static absl::StatusOr<std::unique_ptr<CublasLt>> Open(const char* file = kFile);

  virtual ~CublasLt() = default;
  // INVALID_ARGUMENT for what LtTakes() does not take, sizes below 1, and int8 whose k is no
  // multiple of 4 or whose rows are not aligned to 16 bytes; UNIMPLEMENTED where the library has no
  // kernel. The algorithm for a shape is chosen at its first call, on the host. Can be captured.
  virtual absl::Status Multiply(const LtMatmul& matmul, void* workspace, int64_t workspace_bytes,
                                cudaStream_t stream) = 0;
};

// D = A * B^T + bias; bias float [n] in device memory or null. It is rounded to D's type before it
// is added (that of a bf16 checkpoint is exact then), the sum once more.
absl::Status MultiplyDense(CublasLt* lt, const LtMatmul& matmul, const float* bias, void* workspace,
                           int64_t workspace_bytes, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
