// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The blocks that have one row of logits together. Each has a slice of the tokens, and within it
// each warp a part, in the order of the ids. What they add up is in integers, so that neither the
// number of blocks nor the order of additions shows in a result.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/memory.cuh"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"

namespace nibble::kernels::cuda {

constexpr int kSampleThreads = 256;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kBins = 2048;  // of a histogram
constexpr int kMaxBlocksPerRow = 128;
constexpr int kMaxCandidates = 2048;
// A warp reads 128 tokens at a time: slices are of whole reads of the block.
constexpr int kWarpTokens = 4 * 32;
constexpr int kBlockTokens = kWarpTokens * kSampleWarps;

struct Slot {
  uint64_t amount;
  uint64_t ties;
};
static_assert(sizeof(Slot) == sizeof(uint4));

// In device memory, of a group of two blocks or more, which has one row. What is written several
// times is so only after a barrier that all blocks passed after reading it: hence two and three, by
// turns.
struct GroupMemory {
  uint64_t bins[3][kBins];
  Slot slots[2][kMaxBlocksPerRow];
  uint64_t candidates[kMaxCandidates];
};
// Zero when the kernel starts.
struct GroupCounters {
  uint32_t arrived;  // at barriers
  uint32_t num_candidates;
};

struct SampleShared {
  unsigned low[kBins];  // of histograms, 32 bits of each of the sums
  unsigned high[kBins];
  uint64_t scan[kSampleWarps];
  Slot warps[kSampleWarps];
  Slot slots[kMaxBlocksPerRow];
  uint64_t candidates[kMaxCandidates];
  unsigned num_candidates;  // of a block alone
  uint64_t found_before;
  uint64_t found_through;
  int found_bin;
};

__device__ __forceinline__ uint64_t WarpSum64(uint64_t value) {
#pragma unroll
  for (int bits = gpu::kWarpSize / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(gpu::kFullMask, value, bits);
  }
  return value;
}
__device__ __forceinline__ uint64_t WarpMax64(uint64_t value) {
#pragma unroll
  for (int bits = gpu::kWarpSize / 2; bits > 0; bits /= 2) {
    value = max(value, __shfl_xor_sync(gpu::kFullMask, value, bits));
  }
  return value;
}
class RowGroup {
 public:
  // `counters` and `memory` are not used by a block alone.
  __device__ RowGroup(int num_blocks, int block, GroupCounters* counters, GroupMemory* memory)
      : num_blocks_(num_blocks), block_(block), counters_(counters), memory_(memory) {
    if (num_blocks_ > 1) ClearBins(0);
  }

  __device__ int num_blocks() const { return num_blocks_; }
  __device__ int block() const { return block_; }

  // Every block's slot, in shared->slots. All threads call, after a barrier of the block since they
  // read those of before; `own` is thread 0's.
  __device__ void Exchange(const Slot& own, SampleShared* shared) {
    if (num_blocks_ == 1) {
      if (threadIdx.x == 0) shared->slots[0] = own;
      __syncthreads();
      return;
    }
    Slot* const slots = memory_->slots[slot_turn_];
    slot_turn_ ^= 1;
    if (threadIdx.x == 0) slots[block_] = own;
    Barrier();
    const int i = static_cast<int>(threadIdx.x);
    if (i < num_blocks_) {
      const uint4 words = gpu::LoadVolatile16(slots + i);
      shared->slots[i] = {uint64_t{words.y} << 32 | words.x, uint64_t{words.w} << 32 | words.z};
    }
    __syncthreads();
  }

  // Adds the block's histogram, in shared memory, to those of the others. The sums are where
  // LoadBins() finds them.
  __device__ void MergeBins(const SampleShared& shared) {
    __syncthreads();
    if (num_blocks_ == 1) return;
    ClearBins((bin_turn_ + 1) % 3);
    auto* const sums = reinterpret_cast<unsigned long long*>(memory_->bins[bin_turn_]);
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kSampleThreads) {
      const uint64_t sum = uint64_t{shared.high[bin]} << 32 | shared.low[bin];
      if (sum != 0) atomicAdd(sums + bin, static_cast<unsigned long long>(sum));
    }
    Barrier();
    merged_ = memory_->bins[bin_turn_];
    bin_turn_ = (bin_turn_ + 1) % 3;
  }
  // Bins `bin` and bin + 1, bin even.
  __device__ void LoadBins(const SampleShared& shared, int bin, uint64_t (&sums)[2]) const {
    if (num_blocks_ == 1) {
      for (int i = 0; i < 2; ++i) {
        sums[i] = uint64_t{shared.high[bin + i]} << 32 | shared.low[bin + i];
      }
      return;
    }
    const uint4 words = gpu::LoadVolatile16(merged_ + bin);
    sums[0] = uint64_t{words.y} << 32 | words.x;
    sums[1] = uint64_t{words.w} << 32 | words.z;
  }

  // A list that all threads append to between BeginList() and EndList(), which leaves it in
  // shared->candidates of the first block, in any order: `count` of them, kMaxCandidates at most.
  __device__ void BeginList(SampleShared* shared) const {
    __syncthreads();
    if (threadIdx.x == 0) shared->num_candidates = 0;
    __syncthreads();
  }
  __device__ void Append(uint64_t candidate, SampleShared* shared) const {
    if (num_blocks_ == 1) {
      shared->candidates[atomicAdd(&shared->num_candidates, 1U)] = candidate;
    } else {
      memory_->candidates[atomicAdd(&counters_->num_candidates, 1U)] = candidate;
    }
  }
  __device__ void EndList(int count, SampleShared* shared) {
    if (num_blocks_ > 1) {
      Barrier();
      if (block_ > 0) return;
      for (int i = 2 * static_cast<int>(threadIdx.x); i < count; i += 2 * kSampleThreads) {
        const uint4 words = gpu::LoadVolatile16(memory_->candidates + i);
        shared->candidates[i] = uint64_t{words.y} << 32 | words.x;
        shared->candidates[i + 1] = uint64_t{words.w} << 32 | words.z;
      }
    }
    __syncthreads();
  }

 private:
  // What the blocks wrote before is seen by all of them after. They run at the same time: the
  // launch is cooperative.
  __device__ void Barrier() {
    ++num_barriers_;
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(&counters_->arrived, 1U);
      const uint32_t all = num_barriers_ * static_cast<uint32_t>(num_blocks_);
      while (gpu::LoadAcquireDevice(&counters_->arrived) < all) {
      }
    }
    __syncthreads();
  }
  __device__ void ClearBins(int turn) {
    for (int bin = block_ * kSampleThreads + static_cast<int>(threadIdx.x); bin < kBins;
         bin += num_blocks_ * kSampleThreads) {
      memory_->bins[turn][bin] = 0;
    }
  }

  int num_blocks_;
  int block_;
  GroupCounters* counters_;
  GroupMemory* memory_;
  const uint64_t* merged_ = nullptr;
  uint32_t num_barriers_ = 0;
  int slot_turn_ = 0;
  int bin_turn_ = 0;
};

}  // namespace nibble::kernels::cuda
