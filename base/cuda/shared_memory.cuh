// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A block's shared memory. All of it is dynamic, of the size that the launch says: kernels lay it
// out as a struct and launch with its size.
//
//   struct Shared { float partial[8]; };
//   Shared* const shared = gpu::SharedAs<Shared>();
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::gpu {

// Aligned to 1024 bytes.
template <typename T>
__device__ __forceinline__ T* SharedAs() {
  extern __shared__ __align__(1024) unsigned char nibble_shared_memory[];
  return reinterpret_cast<T*>(nibble_shared_memory);
}

// As the instructions of the wrappers take it. Kernels have pointers.
__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

}  // namespace nibble::gpu
