// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The steps of an all-reduce over mapped memory without its waits: what a block of one rank does
// with a unit. README.md draws them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

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

__device__ __forceinline__ P2pFlags* FlagsOf(const P2pLink& link, int rank) {
  return reinterpret_cast<P2pFlags*>(link.memory[rank]);
}
// Where codes for `to` of this operation lie: step 0 pieces, 1 sums.
__device__ __forceinline__ uint8_t* RegionOf(const P2pLink& link, int to, uint32_t epoch,
                                             int step) {
  const int64_t buffer = epoch & (link.num_buffers - 1);
  return link.memory[to] + sizeof(P2pFlags) + (2 * buffer + step) * link.region_bytes;
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

}  // namespace nibble::comm
