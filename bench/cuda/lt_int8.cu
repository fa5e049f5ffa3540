// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/float16.cuh"
#include "base/cuda/launch.h"
#include "bench/cuda/lt_int8.h"

namespace nibble::bench {
namespace {

constexpr int kThreads = 256;

struct ScaleArgs {
  const int32_t* sums;  // [m, sums_stride]
  int64_t sums_stride;
  const float* a_scales;
  const float* b_scales;
  int64_t n;
  gpu::Bf16* d;
  int64_t d_stride;
};
// Column blockIdx.y * 256 + thread of row blockIdx.x.
__global__ void __launch_bounds__(kThreads) ScaleKernel(ScaleArgs args) {
  const int64_t row = blockIdx.x;
  const int64_t column = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (column >= args.n) return;
  const auto sum = static_cast<float>(args.sums[row * args.sums_stride + column]);
  args.d[row * args.d_stride + column] =
      gpu::ToBf16(sum * (args.a_scales[row] * args.b_scales[column]));
}

// 16 bytes, as the library wants its rows.
int64_t SumsStride(int64_t n) { return (n + 3) / 4 * 4; }
int64_t SumsBytes(int64_t m, int64_t n) {
  constexpr int64_t kAlign = 256;
  const int64_t bytes = m * SumsStride(n) * static_cast<int64_t>(sizeof(int32_t));
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

absl::Status Check(const LtInt8Args& args, int64_t workspace_bytes) {
  constexpr int64_t kMaxRows = 0x7FFFFFFF;
  constexpr int64_t kMaxColumns = int64_t{65535} * kThreads;
  if (args.m < 1 || args.m > kMaxRows || args.n < 1 || args.n > kMaxColumns) {
    return InvalidArgument("w8a8 by cublaslt: {} x {} elements, the limits are 1, and {} and {}",
                           args.m, args.n, kMaxRows, kMaxColumns);
  }
  if (args.d.dtype != DType::kBf16) {
    return InvalidArgument("w8a8 by cublaslt: D is {}, want bfloat16", ToString(args.d.dtype));
  }
  if (workspace_bytes < SumsBytes(args.m, args.n)) {
    return InvalidArgument(
        "w8a8 by cublaslt: {} x {} sums take {} bytes of workspace, there are {}", args.m, args.n,
        SumsBytes(args.m, args.n), workspace_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

int64_t LtInt8WorkspaceBytes(int64_t m, int64_t n) {
  return SumsBytes(m, n) + kernels::cuda::CublasLt::kWorkspaceBytes;
}

absl::Status MultiplyInt8(kernels::cuda::CublasLt* lt, const LtInt8Args& args, void* workspace,
                          int64_t workspace_bytes, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check(args, workspace_bytes));
  auto* const sums = static_cast<int32_t*>(workspace);
  const int64_t sums_bytes = SumsBytes(args.m, args.n);
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
  return gpu::Launch(ScaleKernel,
                     {.grid = {static_cast<unsigned>(args.m),
                               static_cast<unsigned>((args.n + kThreads - 1) / kThreads)},
                      .block = {kThreads},
                      .stream = stream},
                     ScaleArgs{.sums = sums,
                               .sums_stride = SumsStride(args.n),
                               .a_scales = args.a.scales,
                               .b_scales = args.scales,
                               .n = args.n,
                               .d = static_cast<gpu::Bf16*>(args.d.data),
                               .d_stride = args.d.stride});
}

}  // namespace nibble::bench
