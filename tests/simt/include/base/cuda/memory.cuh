// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's form of the header of the same name. What loops wait by lets others run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "tests/simt/simt.h"

namespace nibble::gpu {

inline uint32_t LoadAcquireSystem(const uint32_t* data) {
  simt::CheckAligned(data, 4, "LoadAcquire");
  simt::YieldFor("LoadAcquire");
  return __atomic_load_n(data, __ATOMIC_ACQUIRE);
}
inline void StoreReleaseSystem(uint32_t* data, uint32_t value) {
  simt::CheckAligned(data, 4, "StoreRelease");
  __atomic_store_n(data, value, __ATOMIC_RELEASE);
  simt::Progress();
}
inline uint32_t LoadAcquireDevice(const uint32_t* data) { return LoadAcquireSystem(data); }
inline void StoreReleaseDevice(uint32_t* data, uint32_t value) { StoreReleaseSystem(data, value); }

inline uint4 LoadStreaming16(const void* data) {
  simt::CheckAligned(data, 16, "LoadStreaming16");
  return *static_cast<const uint4*>(data);
}
inline uint4 LoadVolatile16(const void* data) {
  simt::CheckAligned(data, 16, "LoadVolatile16");
  simt::YieldFor("LoadVolatile16");
  return *static_cast<const uint4*>(data);
}

}  // namespace nibble::gpu
