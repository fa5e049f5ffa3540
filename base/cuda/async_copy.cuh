// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Copies from device memory to shared memory that pass by the registers (cp.async, sm_80 and
// later). Each thread has its own: a copy is of the group that the thread commits next, and is
// there when the thread has waited for that group; for other threads to see it, __syncthreads()
// must come after.
//
//   CopyAsync16(...); CopyAsyncCommit();    // tile i + 1
//   CopyAsyncWait<1>(); __syncthreads();    // tile i is there
//   ... use tile i ...
//   __syncthreads();                        // before a copy overwrites it
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/shared_memory.cuh"

namespace nibble::gpu {

// 16 bytes, both sides aligned to 16; through L2 only. With `fill_zero`, nothing is read (but
// `global` must be a valid address) and 16 zero bytes are written.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global,
                                            bool fill_zero = false) {
  const int source_bytes = fill_zero ? 0 : 16;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}

// 4 bytes, both sides aligned to 4; through L1. `fill_zero` as above.
__device__ __forceinline__ void CopyAsync4(void* shared, const void* global,
                                           bool fill_zero = false) {
  const int source_bytes = fill_zero ? 0 : 4;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}

// Ends a group; one without copies is a group, too.
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the kPending groups committed last are under way.
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace nibble::gpu
