// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is done before the library's matrix products: the bias.

#include <algorithm>

#include "base/cuda/launch.h"
#include "kernels/gemm/cuda/cublaslt.h"
#include "kernels/gemm/cuda/store_one.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 0x7FFFFFFF;

// Column blockIdx.y * 256 + thread of row blockIdx.x.
__global__ void __launch_bounds__(kThreads)
    BiasKernel(const float* bias, int64_t n, DeviceMatrix d) {
  const int64_t column = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (column < n) StoreOne(d, blockIdx.x * d.stride + column, bias[column]);
}

absl::Status CheckGrid(int64_t m, int64_t n) {
  constexpr int64_t kMaxColumns = int64_t{65535} * kThreads;
  if (m > kMaxBlocks || n > kMaxColumns) {
    return InvalidArgument("cublaslt: {} x {} elements, the limits are {} and {}", m, n, kMaxBlocks,
                           kMaxColumns);
  }
  return absl::OkStatus();
}

gpu::LaunchConfig Grid(int64_t m, int64_t n, cudaStream_t stream) {
  return {.grid = {static_cast<unsigned>(m), static_cast<unsigned>((n + kThreads - 1) / kThreads)},
          .block = {kThreads},
          .stream = stream};
}

}  // namespace

bool LtTakes(DType type, DType d_type) {
  switch (type) {
    case DType::kBf16:
    case DType::kF16:
      return d_type == DType::kF32 || d_type == type;
    case DType::kI8:
      return d_type == DType::kI32;
    default:
      return false;
  }
}

absl::Status MultiplyDense(CublasLt* lt, const LtMatmul& matmul, const float* bias, void* workspace,
                           int64_t workspace_bytes, cudaStream_t stream) {
  if (matmul.type == DType::kI8 || !LtTakes(matmul.type, matmul.d_type)) {
    return InvalidArgument("cublaslt: a dense product of {} into {}", ToString(matmul.type),
                           ToString(matmul.d_type));
  }
  if (matmul.m == 0 || matmul.n == 0) return absl::OkStatus();
  LtMatmul with_bias = matmul;
  if (bias != nullptr) {
    NIBBLE_RETURN_IF_ERROR(CheckGrid(matmul.m, matmul.n));
    NIBBLE_RETURN_IF_ERROR(gpu::Launch(BiasKernel, Grid(matmul.m, matmul.n, stream), bias, matmul.n,
                                       DeviceMatrix{matmul.d, matmul.d_type, matmul.d_stride}));
    with_bias.accumulate = true;
  }
  return lt->Multiply(with_bias, workspace, workspace_bytes, stream);
}

}  // namespace nibble::kernels::cuda
