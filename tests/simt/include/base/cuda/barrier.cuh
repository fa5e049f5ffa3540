// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's form of the header of the same name.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/shared_memory.cuh"
#include "base/cuda/tensor_map.h"
#include "tests/simt/barriers.h"

namespace nibble::gpu {

struct alignas(8) Barrier {
  uint64_t state;
};

inline void BarrierInit(Barrier* barrier, uint32_t count) {
  simt::BarrierInit(&barrier->state, count);
}
inline void BarrierFenceInit() {}
inline void BarrierArrive(Barrier* barrier) { simt::BarrierArrive(&barrier->state, 0); }
inline void BarrierArriveExpectBytes(Barrier* barrier, uint32_t bytes) {
  simt::BarrierArrive(&barrier->state, bytes);
}
inline void BarrierWait(Barrier* barrier, uint32_t parity) {
  simt::BarrierWait(&barrier->state, parity);
}
inline void BulkCopy(void* shared, const void* global, uint32_t bytes, Barrier* barrier) {
  simt::BulkCopy(shared, global, bytes, &barrier->state);
}
inline void TensorCopy2d(void* shared, const TensorMap* map, int x, int y, Barrier* barrier) {
  simt::TensorCopy2d(shared, map, x, y, &barrier->state);
}
inline void FenceProxyAsync() {}

template <int kId>
void NamedBarrierSync(int count) {
  static_assert(kId >= 1 && kId <= 15);
  simt::NamedBarrier(kId, count);
}

}  // namespace nibble::gpu
