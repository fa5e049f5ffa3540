// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Loads and stores of device memory whose order or caching matters.
//
// Loops that wait for memory wait by LoadAcquire...() or LoadVolatile16() and by nothing else.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::gpu {

// What was written before a release store is seen after an acquire load that sees the store: by
// threads of this device, or of the whole system (other devices, the host).
__device__ __forceinline__ uint32_t LoadAcquireSystem(const uint32_t* data) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(data))
               : "memory");
  return value;
}
__device__ __forceinline__ void StoreReleaseSystem(uint32_t* data, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(data)),
               "r"(value)
               : "memory");
}
__device__ __forceinline__ uint32_t LoadAcquireDevice(const uint32_t* data) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(data))
               : "memory");
  return value;
}
__device__ __forceinline__ void StoreReleaseDevice(uint32_t* data, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(data)),
               "r"(value)
               : "memory");
}

// 16 bytes that no thread writes during the kernel and that are read once: L1 keeps none of them.
__device__ __forceinline__ uint4 LoadStreaming16(const void* data) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(__cvta_generic_to_global(data)));
  return value;
}

// 16 bytes of this or another device, from memory each time; no order with other accesses.
__device__ __forceinline__ uint4 LoadVolatile16(const void* data) {
  uint4 value;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(__cvta_generic_to_global(data))
               : "memory");
  return value;
}

}  // namespace nibble::gpu
