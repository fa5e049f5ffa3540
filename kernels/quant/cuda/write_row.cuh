// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The end of a row op, by one block: a row of floats that only registers hold goes to memory in the
// types asked for, int8 with its scale included.
//
// Thread t has elements 8 * (t + i * blockDim.x) .. + 7, i = 0 .. kHeld - 1. Rows too long for
// registers have kHeld = 0: their values are computed twice instead.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/reduce.cuh"
#include "kernels/device/elements.cuh"

namespace nibble::kernels::cuda {

constexpr int kMaxRowThreads = 512;
constexpr int kMaxRowWarps = kMaxRowThreads / 32;

struct RowScratch {
  int max[kMaxRowWarps];
  int sums[kMaxRowWarps];
};

// Calls visit(i, chunk) for the chunks of 8 of this thread.
template <int kHeld, typename Visit>
__device__ __forceinline__ void ForChunks(int num_chunks, const Visit& visit) {
  if constexpr (kHeld > 0) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int chunk = static_cast<int>(threadIdx.x + i * blockDim.x);
      if (chunk < num_chunks) visit(i, chunk);
    }
  } else {
    for (int chunk = static_cast<int>(threadIdx.x); chunk < num_chunks;
         chunk += static_cast<int>(blockDim.x)) {
      visit(0, chunk);
    }
  }
}

// value(i, chunk) gives a Float8, the same one each time it is asked. All threads of the block
// call.
template <int kHeld, typename Value>
__device__ __forceinline__ void WriteRow(const RowOutput& out, int64_t row, int num_chunks,
                                         RowScratch* scratch, const Value& value) {
  const bool quantize = out.quantized.values != nullptr;
  Float8 held[kHeld > 0 ? kHeld : 1];
  int max_bits = 0;
  ForChunks<kHeld>(num_chunks, [&](int i, int chunk) {
    const Float8 x = value(i, chunk);
    if constexpr (kHeld > 0) held[i] = x;
    if (out.values.data != nullptr) {
      Store8(out.values, row * out.values.stride + chunk * kElements, x);
    }
    max_bits = max(max_bits, MagnitudeBits(x));
  });
  if (!quantize) return;

  max_bits = __reduce_max_sync(gpu::kFullMask, max_bits);
  if (gpu::LaneId() == 0) scratch->max[gpu::WarpId()] = max_bits;
  __syncthreads();
  const int num_warps = static_cast<int>(blockDim.x) / gpu::kWarpSize;
  for (int warp = 0; warp < num_warps; ++warp) max_bits = max(max_bits, scratch->max[warp]);

  const RowScale scale = MakeRowScale(max_bits);
  int8_t* const codes = out.quantized.values + row * out.quantized.stride;
  int sum = 0;
  ForChunks<kHeld>(num_chunks, [&](int i, int chunk) {
    if constexpr (kHeld > 0) {
      sum += QuantizeTo(codes + chunk * kElements, held[i], scale);
    } else {
      sum += QuantizeTo(codes + chunk * kElements, value(i, chunk), scale);
    }
  });
  sum = __reduce_add_sync(gpu::kFullMask, sum);
  if (gpu::LaneId() == 0) scratch->sums[gpu::WarpId()] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < num_warps; ++warp) sum += scratch->sums[warp];
  out.quantized.scales[row] = scale.scale;
  out.quantized.sums[row] = sum;
}

}  // namespace nibble::kernels::cuda
