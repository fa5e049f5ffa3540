// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Histograms over some bits of the tokens' keys, in shared memory, and the bin at which a sum over
// them reaches something.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/reduce.cuh"
#include "kernels/sampling/cuda/row_group.cuh"

namespace nibble::kernels::cuda {

// All threads of the block, before the first AddToBin().
__device__ __forceinline__ void ClearHistogram(SampleShared* shared) {
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kSampleThreads) {
    shared->low[bin] = 0;
    shared->high[bin] = 0;
  }
  if (threadIdx.x == 0) shared->found_bin = -1;
  __syncthreads();
}

__device__ __forceinline__ void AddToBin(unsigned bin, uint64_t amount, SampleShared* shared) {
  // 64 bits by two additions of 32: whoever makes the lower one overflow carries.
  const auto low = static_cast<unsigned>(amount);
  const unsigned carry = atomicAdd(&shared->low[bin], low) > ~low ? 1 : 0;
  const unsigned high = static_cast<unsigned>(amount >> 32) + carry;
  if (high != 0) atomicAdd(&shared->high[bin], high);
}

// The bin, from the highest one down, with which the sum from *before on reaches need_of(the sum
// of all), and what is before it; -1 and all of the sum when it does not.
template <typename Need>
__device__ __forceinline__ int FindBin(const RowGroup& group, const Need& need_of,
                                       SampleShared* shared, uint64_t* before) {
  constexpr int kPerThread = kBins / kSampleThreads;
  const int last = kBins - 1 - static_cast<int>(threadIdx.x) * kPerThread;
  uint64_t sums[kPerThread];  // falling bins
  uint64_t own = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; i += 2) {
    uint64_t pair[2];
    group.LoadBins(*shared, last - i - 1, pair);
    sums[i] = pair[1];
    sums[i + 1] = pair[0];
    own += pair[0] + pair[1];
  }
  const uint64_t through_lane = gpu::WarpScan(own);
  if (gpu::LaneId() == 31) shared->scan[gpu::WarpId()] = through_lane;
  __syncthreads();
  uint64_t sum = *before + through_lane - own;
  uint64_t total = *before;
  for (int warp = 0; warp < kSampleWarps; ++warp) {
    if (warp < gpu::WarpId()) sum += shared->scan[warp];
    total += shared->scan[warp];
  }
  const uint64_t need = need_of(total);
  if (sum < need && need <= sum + own) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (sum < need && need <= sum + sums[i]) {
        shared->found_bin = last - i;
        shared->found_before = sum;
        shared->found_through = sum + sums[i];
      }
      sum += sums[i];
    }
  }
  __syncthreads();
  const int bin = shared->found_bin;
  *before = bin < 0 ? total : shared->found_before;
  return bin;
}

}  // namespace nibble::kernels::cuda
