// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A barrier of all blocks of a cooperative launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/memory.cuh"

namespace nibble::gpu {

// All threads of all blocks; what they wrote before is seen by all after. `counter` is device
// memory, 0 before its first use and of one launch at a time; it needs no reset: block 0 adds what
// makes the sum of all blocks 2^31, so that the highest bit turns over when the last one has come.
__device__ __forceinline__ void GridSync(uint32_t* counter) {
  constexpr uint32_t kTurn = 0x80000000U;
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    const bool is_first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
    const uint32_t num_blocks = gridDim.x * gridDim.y * gridDim.z;
    __threadfence();
    const uint32_t before = atomicAdd(counter, is_first ? kTurn - (num_blocks - 1) : 1U);
    while (((before ^ LoadAcquireDevice(counter)) & kTurn) == 0) {
    }
  }
  __syncthreads();
}

}  // namespace nibble::gpu
