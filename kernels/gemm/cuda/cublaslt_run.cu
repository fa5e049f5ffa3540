// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is done around the library's matrix products: bias before, scales after.

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

struct ScaleArgs {
  const int32_t* sums;  // [m, sums_stride]
  int64_t sums_stride;
  const float* a_scales;
  const float* b_scales;
  const float* bias;
  int64_t n;
  DeviceMatrix d;
};
__global__ void __launch_bounds__(kThreads) ScaleKernel(ScaleArgs args) {
  const int64_t row = blockIdx.x;
  const int64_t column = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (column >= args.n) return;
  const auto sum = static_cast<float>(args.sums[row * args.sums_stride + column]);
  float value = sum * (args.a_scales[row] * args.b_scales[column]);
  if (args.bias != nullptr) value += args.bias[column];
  StoreOne(args.d, row * args.d.stride + column, value);
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

// 16 bytes, as the library wants its rows.
int64_t SumsStride(int64_t n) { return (n + 3) / 4 * 4; }
int64_t SumsBytes(int64_t m, int64_t n) {
  constexpr int64_t kAlign = 256;
  const int64_t bytes = m * SumsStride(n) * static_cast<int64_t>(sizeof(int32_t));
  return (bytes + kAlign - 1) / kAlign * kAlign;
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

int64_t LtInt8WorkspaceBytes(int64_t m, int64_t n) {
  return SumsBytes(m, n) + CublasLt::kWorkspaceBytes;
}

absl::Status MultiplyInt8(CublasLt* lt, const LtInt8Args& args, void* workspace,
                          int64_t workspace_bytes, cudaStream_t stream) {
  if (args.m == 0 || args.n == 0) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckGrid(args.m, args.n));
  const int64_t sums_bytes = SumsBytes(args.m, args.n);
  if (workspace_bytes < sums_bytes) {
    return InvalidArgument("cublaslt: {} x {} sums take a workspace of {} bytes, there are {}",
                           args.m, args.n, sums_bytes, workspace_bytes);
  }
  auto* const sums = static_cast<int32_t*>(workspace);
  NIBBLE_RETURN_IF_ERROR(lt->Multiply({.m = args.m,
                                       .n = args.n,
                                       .k = args.k,
                                       .type = DType::kI8,
                                       .a = args.a.values,
                                       .a_stride = args.a.stride,
                                       .b = args.b,
                                       .b_stride = args.b_stride,
                                       .d_type = DType::kI32,
                                       .d = sums,
                                       .d_stride = SumsStride(args.n)},
                                      static_cast<uint8_t*>(workspace) + sums_bytes,
                                      workspace_bytes - sums_bytes, stream));
  const ScaleArgs scale{.sums = sums,
                        .sums_stride = SumsStride(args.n),
                        .a_scales = args.a.scales,
                        .b_scales = args.scales,
                        .bias = args.bias,
                        .n = args.n,
                        .d = args.d};
  return gpu::Launch(ScaleKernel, Grid(args.m, args.n, stream), scale);
}

}  // namespace nibble::kernels::cuda
