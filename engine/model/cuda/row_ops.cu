// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <limits>

#include "base/cuda/error.h"
#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "engine/model/cuda/row_ops.h"
#include "kernels/device/elements.cuh"
#include "kernels/device/exp.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / gpu::kWarpSize;
constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();

__global__ __launch_bounds__(kThreads) void ReorderColumnsKernel(ReorderColumnsArgs args,
                                                                 int64_t num_elements) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= num_elements) return;
  const int64_t row = index / args.k;
  const int64_t column = index % args.k;
  args.to[row * args.stride + column] = args.from[row * args.stride + args.order[column]];
}

struct GateShared {
  float sums[kWarps];
};

// A row is one block's: its dot product is summed in an order of its own, whatever the batch.
__global__ __launch_bounds__(kThreads) void GateRowsKernel(GateRowsArgs args) {
  auto* const shared = gpu::SharedAs<GateShared>();
  const int64_t row = blockIdx.x;
  const float* const x = args.x + row * args.x_stride;
  float sum = 0.0F;
  for (int64_t i = threadIdx.x; i < args.hidden; i += kThreads) sum = fmaf(x[i], args.gate[i], sum);
  const float logit = gpu::BlockSum(sum, shared->sums);
  const float gate = 1.0F / (1.0F + Exp(-logit));
  for (int64_t i = int64_t{threadIdx.x} * kElements; i < args.hidden; i += kThreads * kElements) {
    Float8 y = Load8(args.y, row * args.y.stride + i);
    for (int e = 0; e < kElements; ++e) y.v[e] *= gate;
    Store8(args.y, row * args.y.stride + i, y);
  }
}

}  // namespace

// Any kernel: all are compiled for the same devices.
absl::Status CheckKernelImage() {
  cudaFuncAttributes attributes;
  return gpu::ToStatus(cudaFuncGetAttributes(&attributes, GateRowsKernel),
                       "no kernel for this device");
}

absl::Status ReorderColumns(const ReorderColumnsArgs& args, cudaStream_t stream) {
  const int64_t num_elements = args.num_rows * args.k;
  const int64_t num_blocks = (num_elements + kThreads - 1) / kThreads;
  if (args.num_rows < 0 || args.k < 1 || num_blocks > kMaxRows) {
    return InvalidArgument("{} rows of {} columns: the limit is {} elements", args.num_rows, args.k,
                           kMaxRows * kThreads);
  }
  return gpu::Launch(
      ReorderColumnsKernel,
      {.grid = {static_cast<unsigned>(num_blocks)}, .block = {kThreads}, .stream = stream}, args,
      num_elements);
}

absl::Status GateRows(const GateRowsArgs& args, cudaStream_t stream) {
  if (args.num_rows < 0 || args.num_rows > kMaxRows) {
    return InvalidArgument("{} rows: the limits are 0 and {}", args.num_rows, kMaxRows);
  }
  if (args.hidden < kElements || args.hidden % kElements != 0) {
    return InvalidArgument("hidden is {}, want a multiple of {}", args.hidden, kElements);
  }
  return gpu::Launch(GateRowsKernel,
                     {.grid = {static_cast<unsigned>(args.num_rows)},
                      .block = {kThreads},
                      .shared_bytes = sizeof(GateShared),
                      .stream = stream},
                     args);
}

}  // namespace nibble::kernels::cuda
