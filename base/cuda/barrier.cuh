// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Barriers in shared memory that count threads and bytes (mbarrier), bulk copies that complete them
// (sm_90 and later; they trap elsewhere), and the block's numbered barriers.
//
// A barrier goes through phases 0, 1, 2 ... A phase is complete when `count` arrivals have come
// and as many bytes have been copied as were expected; the next one begins at once, with `count`
// arrivals to come. Threads wait for the phase of a parity: BarrierWait(b, 0) for phase 0, then
// BarrierWait(b, 1) for phase 1, and so on. The phase before phase 0 counts as complete, so that
// BarrierWait(b, 1) on a new barrier returns: what a producer wants who finds all buffers empty.
//
//   if (threadIdx.x == 0) { BarrierInit(&s->full, 1); BarrierFenceInit(); }
//   __syncthreads();
//   if (threadIdx.x == 0) {
//     BarrierArriveExpectBytes(&s->full, bytes);   // before or after the copy, same phase
//     BulkCopy(s->tile, global, bytes, &s->full);
//   }
//   BarrierWait(&s->full, 0);                      // each thread that reads s->tile
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/shared_memory.cuh"
#include "base/cuda/tensor_map.h"

namespace nibble::gpu {

struct alignas(8) Barrier {
  uint64_t state;
};

// One thread, before any other uses it; count 1 .. 1023.
__device__ __forceinline__ void BarrierInit(Barrier* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count)
               : "memory");
}
// The initializing thread, after its last BarrierInit and before the __syncthreads() that lets the
// others at it: makes it known to the copy engine.
__device__ __forceinline__ void BarrierFenceInit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  __trap();
#endif
}

// What the thread wrote before is seen by threads that wait for the phase.
__device__ __forceinline__ void BarrierArrive(Barrier* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
#else
  __trap();
#endif
}
// Arrives, and has the phase wait for so many bytes more; below 2^20.
__device__ __forceinline__ void BarrierArriveExpectBytes(Barrier* barrier, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}
// Until the phase of that parity (0 or 1) is complete.
__device__ __forceinline__ void BarrierWait(Barrier* barrier, uint32_t parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}\n"
        : "=r"(done)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
#else
  __trap();
#endif
}

// ---- The copy engine: one thread starts a copy, all threads that wait for the barrier see it ----

// `bytes` and both addresses multiples of 16. The source is not written before the copy is done.
__device__ __forceinline__ void BulkCopy(void* shared, const void* global, uint32_t bytes,
                                         Barrier* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
#else
  __trap();
#endif
}
// The box whose first element is (x of the row, row y); both may be outside of the matrix, also
// negative. Counts the bytes of the whole box, zeros too. `shared` is aligned to 128 bytes, and to
// 1024 where a descriptor is made of it. `map` is a __grid_constant__ parameter.
__device__ __forceinline__ void TensorCopy2d(void* shared, const TensorMap* map, int x, int y,
                                             Barrier* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(x), "r"(y), "r"(SharedAddress(barrier))
      : "memory");
#else
  __trap();
#endif
}
// Between plain writes of shared memory by this thread and reads of them by the copy engine or by
// wgmma (which takes B from shared memory); then a barrier, if another thread starts those.
__device__ __forceinline__ void FenceProxyAsync() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}

// ---- Numbered barriers: __syncthreads() of some of the warps (every architecture) ----

// `count` threads (whole warps) meet at barrier kId, 1 .. 15 (0 is __syncthreads()).
template <int kId>
__device__ __forceinline__ void NamedBarrierSync(int count) {
  static_assert(kId >= 1 && kId <= 15);
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "r"(count) : "memory");
}

}  // namespace nibble::gpu
