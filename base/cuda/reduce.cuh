// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sums, running sums and maxima over the threads of a warp or a block, in one fixed order: the bits
// do not depend on which thread was first.
#pragma once

#include <cuda_runtime.h>

namespace nibble::gpu {

constexpr unsigned kFullMask = 0xFFFFFFFFU;
constexpr int kWarpSize = 32;

__device__ __forceinline__ int LaneId() { return static_cast<int>(threadIdx.x % kWarpSize); }
__device__ __forceinline__ int WarpId() { return static_cast<int>(threadIdx.x / kWarpSize); }

// On all lanes: lane i with lane i ^ 16, then 8, 4, 2, 1. Addition and maximum are commutative, so
// all lanes hold the same bits.
__device__ __forceinline__ float WarpSum(float value) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kFullMask, value, bits);
  }
  return value;
}
__device__ __forceinline__ float WarpMax(float value) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullMask, value, bits));
  }
  return value;
}
__device__ __forceinline__ int WarpSum(int value) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kFullMask, value, bits);
  }
  return value;
}

// The sum over the lanes up to this one, this one with it.
template <typename T>
__device__ __forceinline__ T WarpScan(T value) {
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const T other = __shfl_up_sync(kFullMask, value, distance);
    if (LaneId() >= distance) value += other;
  }
  return value;
}

// On all threads of a one-dimensional block of whole warps: warps in rising order. `scratch` has an
// element for each warp; it may be used again after the next __syncthreads().
template <typename T>
__device__ __forceinline__ T BlockSum(T value, T* scratch) {
  value = WarpSum(value);
  if (LaneId() == 0) scratch[WarpId()] = value;
  __syncthreads();
  T sum = scratch[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarpSize; ++warp) sum += scratch[warp];
  return sum;
}

}  // namespace nibble::gpu
