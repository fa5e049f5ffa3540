// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The all-reduce over mapped memory, as a block of one rank runs it: one-shot and two-shot in every
// codec, comm/README.md's Flash all-reduce. README.md draws the steps and the flags. Kernels around
// it say what becomes of a row that is summed (Epilogue).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/memory.cuh"
#include "comm/codec/cuda/codec_wire.cuh"
#include "comm/gpu/p2p_link.h"

namespace nibble::comm {

// One launch's part of a message, by value: P2pPlan as blocks need it.
struct P2pJob {
  GroupLayout layout;  // of a slot
  cuda::Rows rows;     // in place
  uint32_t first_group = 0;
  uint32_t num_groups = 0;
  uint32_t unit_groups = 1;
  uint32_t num_units = 0;
  int64_t slot_bytes = 0;
};

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

__device__ __forceinline__ P2pFlags* FlagsOf(const P2pLink& link, int rank) {
  return reinterpret_cast<P2pFlags*>(link.memory[rank]);
}
// Where codes for `to` of this operation lie: step 0 pieces, 1 sums.
__device__ __forceinline__ uint8_t* RegionOf(const P2pLink& link, int to, uint32_t epoch,
                                             int step) {
  const int64_t buffer = epoch & (link.num_buffers - 1);
  return link.memory[to] + sizeof(P2pFlags) + (2 * buffer + step) * link.region_bytes;
}

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
// begun. What a flag says that was not written for long (blocks that only large messages have) is
// neither, whatever wrapped meanwhile. False when that is not to be.
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

template <int kBits, bool kTwoShot>
class P2pBlock {
 public:
  __device__ P2pBlock(const P2pLink& link, const P2pJob& job, uint32_t epoch)
      : link_(link),
        job_(job),
        epoch_(epoch),
        team_(cuda::TeamSize(job.layout)),
        per_warp_(static_cast<uint32_t>(gpu::kWarpSize / team_)) {}

  // Groups of a unit; the last one may have fewer.
  __device__ uint32_t SizeOf(uint32_t unit) const {
    const uint32_t begin = unit * job_.unit_groups;
    return min(job_.unit_groups, job_.num_groups - begin);
  }

  // Step 1: this rank's values, coded, to whom they are for.
  __device__ void Contribute(uint32_t unit) const {
    const uint32_t size = SizeOf(unit);
    // Ranks begin with different owners, so that not all send to one at a time.
    const uint32_t shift = kTwoShot ? StripeBegin(size, (link_.rank + 1) % link_.size) : 0;
    ForGroups(size, [&](bool has_group, uint32_t at) {
      uint32_t group = at + shift;
      if (group >= size) group -= size;
      float x[cuda::kThreadValues];
      cuda::LoadValues(job_.rows, SpanOf(unit, group), x);
      if constexpr (kTwoShot) {
        const int owner = OwnerOf(size, group);
        Send(has_group, job_.layout.rotation, x, group - StripeBegin(size, owner),
             [&](int i) { return i == 0 ? Slot(owner, 0, link_.rank, unit) : nullptr; });
      } else {
        Send(has_group, job_.layout.rotation, x, group,
             [&](int i) { return i < link_.size ? Slot(Nth(i), 0, link_.rank, unit) : nullptr; });
      }
    });
  }

  // Step 2 of two-shot: the sum of this rank's stripe, coded, to everybody.
  __device__ void Reduce(uint32_t unit) const {
    const uint32_t size = SizeOf(unit);
    const uint32_t stripe = StripeBegin(size, link_.rank + 1) - StripeBegin(size, link_.rank);
    ForGroups(stripe, [&](bool has_group, uint32_t group) {
      float x[cuda::kThreadValues];
      Sum(has_group, unit, group, x);
      Send(has_group, false, x, group,
           [&](int i) { return i < link_.size ? Slot(Nth(i), 1, link_.rank, unit) : nullptr; });
    });
  }

  // The last step: everybody's sums into the rows.
  __device__ void Collect(uint32_t unit) const {
    const uint32_t size = SizeOf(unit);
    ForGroups(size, [&](bool has_group, uint32_t group) {
      float x[cuda::kThreadValues];
      if constexpr (kTwoShot) {
        const int owner = OwnerOf(size, group);
        cuda::DecodeThread<kBits>(job_.layout, has_group, Slot(link_.rank, 1, owner, unit),
                                  group - StripeBegin(size, owner), x);
      } else {
        Sum(has_group, unit, group, x);
        cuda::RoundToCodec<kBits>(job_.layout, x);
      }
      if (job_.layout.rotation) cuda::Rotate(job_.layout, x);
      if (has_group) cuda::StoreValues(job_.rows, SpanOf(unit, group), x);
    });
  }

 private:
  // body(has a group, which) on all lanes of a warp the same number of times, also on lanes without
  // a group, for which it is one that others have.
  template <typename Body>
  __device__ void ForGroups(uint32_t count, const Body& body) const {
    const uint32_t stride = blockDim.x / gpu::kWarpSize * per_warp_;
    for (uint32_t first = static_cast<uint32_t>(gpu::WarpId()) * per_warp_; first < count;
         first += stride) {
      const uint32_t group = first + static_cast<uint32_t>(gpu::LaneId() / team_);
      body(group < count, group < count ? group : first);
    }
  }

  // As comm/flash's StripeOf; of rank = size: the end.
  __device__ uint32_t StripeBegin(uint32_t groups, int rank) const {
    const auto size = static_cast<uint32_t>(link_.size);
    const auto r = static_cast<uint32_t>(rank);
    return groups / size * r + groups % size * r / size;
  }
  __device__ int OwnerOf(uint32_t groups, uint32_t group) const {
    int owner = 0;
    for (int rank = 1; rank < link_.size; ++rank) {
      owner = group >= StripeBegin(groups, rank) ? rank : owner;
    }
    return owner;
  }
  // The i-th rank to send to: the next one first, this one last.
  __device__ int Nth(int i) const { return (link_.rank + 1 + i) % link_.size; }

  __device__ uint8_t* Slot(int to, int step, int from, uint32_t unit) const {
    return RegionOf(link_, to, epoch_, step) +
           (static_cast<int64_t>(from) * job_.num_units + unit) * job_.slot_bytes;
  }

  __device__ cuda::Span SpanOf(uint32_t unit, uint32_t group) const {
    return cuda::SpanOf(job_.rows, job_.first_group + unit * job_.unit_groups + group,
                        cuda::TeamPart(job_.layout));
  }

  __device__ void Sum(bool has_group, uint32_t unit, uint32_t group,
                      float (&x)[cuda::kThreadValues]) const {
    cuda::SumThread<kBits>(
        job_.layout, has_group,
        [&](int from) -> const uint8_t* { return Slot(link_.rank, 0, from, unit); }, link_.size,
        group, x);
  }

  // Codes values once and writes them to target(0), target(1), ... until that is null.
  template <typename Target>
  __device__ void Send(bool has_group, bool rotate, float (&x)[cuda::kThreadValues], uint32_t group,
                       const Target& target) const {
    if constexpr (kBits <= 8) {
      cuda::ThreadCode<kBits> code;
      cuda::Quantize(job_.layout, rotate, x, &code);
      if (!has_group) return;
      for (int i = 0; uint8_t* const out = target(i); ++i) {
        cuda::StoreCode(job_.layout, code, group, out);
      }
    } else {
      for (int i = 0; uint8_t* const out = target(i); ++i) {
        cuda::EncodeThread<kBits>(job_.layout, false, has_group, x, group, out);
      }
    }
  }

  const P2pLink& link_;
  const P2pJob& job_;
  const uint32_t epoch_;
  const int team_;
  const uint32_t per_warp_;
};

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
