// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The all-reduce over mapped memory, as a block of one rank runs it: one-shot and two-shot in every
// codec, comm/README.md's Flash all-reduce. README.md draws the steps and the flags. Kernels around
// it say what becomes of a row that is summed (Epilogue).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/memory.cuh"
#include "comm/gpu/p2p_block.cuh"
#include "comm/gpu/p2p_link.h"

namespace nibble::comm {

// Block-wide state of an operation; in shared memory.
struct P2pShared {
  uint32_t epoch;
  uint32_t has_failed;
};

// What waits do between looks at a flag. Tests put pauses elsewhere.
struct NoStall {
  __device__ void operator()(int) const {}
};

// For kernels that only sum.
struct NoEpilogue {
  static constexpr bool kTakesRows = false;
  struct Shared {};
  __device__ void operator()(int64_t, Shared*) const {}
};

// The first fault of a rank stays; its host and its peers are told.
__device__ __forceinline__ void P2pFail(const P2pLink& link, P2pFaultKind kind, int rank,
                                        P2pShared* shared) {
  shared->has_failed = 1;
  const uint32_t fault = MakeP2pFault(kind, rank);
  if (atomicCAS(&link.progress->broken, 0U, fault) != 0U) return;
  gpu::StoreReleaseSystem(&link.host->fault, fault);
  for (int peer = 0; peer < link.size; ++peer) {
    if (peer != link.rank) gpu::StoreReleaseSystem(&FlagsOf(link, peer)->aborted[link.rank], 1U);
  }
}

// All threads; false when an operation before has failed.
__device__ __forceinline__ bool P2pBegin(const P2pLink& link, P2pShared* shared) {
  if (threadIdx.x == 0) {
    shared->epoch = gpu::LoadAcquireDevice(&link.progress->epoch);
    shared->has_failed = gpu::LoadAcquireDevice(&link.progress->broken);
  }
  __syncthreads();
  return shared->has_failed == 0;
}

// All threads: tells the peers that what this block wrote for them is there.
__device__ __forceinline__ void P2pSignal(const P2pLink& link, uint32_t (*flags)[kMaxP2pRanks],
                                          const P2pShared* shared) {
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer >= link.size || peer == link.rank) return;
  // `flags` is this rank's; the peer's lie at the same place of its memory.
  const int64_t offset =
      reinterpret_cast<uint8_t*>(&flags[blockIdx.x][link.rank]) - link.memory[link.rank];
  gpu::StoreReleaseSystem(reinterpret_cast<uint32_t*>(link.memory[peer] + offset), shared->epoch);
}

// Whether a peer has given up, or this rank elsewhere: then nobody waits on, for whomever.
__device__ __forceinline__ bool P2pHasEnded(const P2pLink& link, P2pShared* shared) {
  for (int peer = 0; peer < link.size; ++peer) {
    if (gpu::LoadAcquireSystem(&FlagsOf(link, link.rank)->aborted[peer]) == 0) continue;
    P2pFail(link, P2pFaultKind::kPeerAborted, peer, shared);
    return true;
  }
  if (gpu::LoadAcquireDevice(&link.progress->broken) == 0) return false;
  shared->has_failed = 1;
  return true;
}

// All threads: until every peer's flag says this operation or the next, which a peer may have
// begun. A flag that was not written for long (blocks that only large messages have) says neither,
// but if exactly 2^32 or 2^32 - 1 operations lie between. False when that is not to be.
__device__ __forceinline__ bool P2pWait(const P2pLink& link, uint32_t (*flags)[kMaxP2pRanks],
                                        P2pShared* shared) {
  constexpr unsigned kLooksBetweenPeers = 16;
  constexpr unsigned kLooksBetweenHost = 1024;  // its memory is beyond a bus
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < link.size && peer != link.rank) {
    const uint32_t* const flag = &flags[blockIdx.x][peer];
    const int64_t start = clock64();
    for (unsigned looks = 1; gpu::LoadAcquireSystem(flag) - shared->epoch > 1U; ++looks) {
      if (looks % kLooksBetweenPeers == 0 && P2pHasEnded(link, shared)) break;
      if (looks % kLooksBetweenHost == 0 && gpu::LoadAcquireSystem(&link.host->aborted) != 0) {
        P2pFail(link, P2pFaultKind::kAborted, link.rank, shared);
        break;
      }
      if (clock64() - start > link.timeout_clocks) {
        P2pFail(link, P2pFaultKind::kTimeout, peer, shared);
        break;
      }
    }
  }
  __syncthreads();
  return shared->has_failed == 0;
}

// All threads: the last block to come makes it the next operation's turn.
__device__ __forceinline__ void P2pEnd(const P2pLink& link, const P2pShared* shared) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(&link.progress->blocks_done, 1U) + 1 != gridDim.x) return;
  link.progress->blocks_done = 0;
  gpu::StoreReleaseDevice(&link.progress->epoch, shared->epoch + 1);
}

// One operation of one rank, by all blocks of blockIdx.x. With an epilogue that takes rows, a unit
// is a row, and epilogue(row, its shared memory) is called by the whole block for each when it is
// summed. `stall`: as NoStall, before each step.
template <int kBits, bool kTwoShot, typename Epilogue, typename Stall>
__device__ __forceinline__ void RunP2pAllReduce(const P2pLink& link, const P2pJob& job,
                                                const Epilogue& epilogue, const Stall& stall,
                                                P2pShared* shared,
                                                typename Epilogue::Shared* epilogue_shared) {
  if (!P2pBegin(link, shared)) return;
  P2pFlags* const own = FlagsOf(link, link.rank);
  const P2pBlock<kBits, kTwoShot> block(link, job, shared->epoch);
  const auto for_units = [&](const auto& body) {
    for (uint32_t unit = blockIdx.x; unit < job.num_units; unit += gridDim.x) body(unit);
  };
  stall(0);
  for_units([&](uint32_t unit) { block.Contribute(unit); });
  stall(1);
  P2pSignal(link, own->pieces, shared);
  if (!P2pWait(link, own->pieces, shared)) return;
  stall(2);
  if constexpr (kTwoShot) {
    for_units([&](uint32_t unit) { block.Reduce(unit); });
    P2pSignal(link, own->sums, shared);
    if (!P2pWait(link, own->sums, shared)) return;
    stall(3);
  }
  for_units([&](uint32_t unit) { block.Collect(unit); });
  if constexpr (Epilogue::kTakesRows) {
    __syncthreads();
    const auto first_row = static_cast<int64_t>(job.first_group / job.unit_groups);
    for_units([&](uint32_t unit) { epilogue(first_row + unit, epilogue_shared); });
  }
  P2pEnd(link, shared);
}

}  // namespace nibble::comm
