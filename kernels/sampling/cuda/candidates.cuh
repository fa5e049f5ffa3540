// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Drawing from few tokens, which one block has in shared memory: sorted, then one sum over them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/sampling/cuda/sample.h"
#include "kernels/sampling/cuda/weighted_row.cuh"

namespace nibble::kernels::cuda {

// Of tokens that weigh `sum` together: as many as hold the share top_p.
__device__ __forceinline__ uint64_t MassOf(float top_p, uint64_t sum) {
  const double mass = ceil(static_cast<double>(top_p) * static_cast<double>(sum));
  return max(uint64_t{1}, min(static_cast<uint64_t>(mass), sum));
}
// The sum that the chosen token is the first to reach: above uniform * sum.
__device__ __forceinline__ uint64_t TargetOf(float uniform, uint64_t sum) {
  const double target = static_cast<double>(uniform) * static_cast<double>(sum);
  return min(static_cast<uint64_t>(target) + 1, sum);
}

// Falling, in place, padded with zeros to a power of two, `size`: Batcher's bitonic sort.
__device__ __forceinline__ void SortCandidates(uint64_t* candidates, int count, int size) {
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kSampleThreads) {
    candidates[i] = 0;
  }
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < size / 2; pair += kSampleThreads) {
        const int i = 2 * pair - (pair & (step - 1));
        const uint64_t a = candidates[i];
        const uint64_t b = candidates[i + step];
        const bool falling = (i & run) == 0;
        if ((a < b) == falling) {
          candidates[i] = b;
          candidates[i + step] = a;
        }
      }
      __syncthreads();
    }
  }
}

// From the top_k of the `count` candidates (in any order), cut by top_p. All threads of the block
// call; one of them writes *token_id, none where nothing weighs anything.
__device__ __forceinline__ void DrawFromCandidates(const WeightedRow& row,
                                                   const SampleParams& params, int count,
                                                   SampleShared* shared, int32_t* token_id) {
  int size = 2;
  while (size < count) size *= 2;
  uint64_t* const candidates = shared->candidates;
  SortCandidates(candidates, count, size);

  constexpr int kPerThread = kMaxCandidates / kSampleThreads;
  const int first = static_cast<int>(threadIdx.x) * kPerThread;
  const int end = min(count, params.top_k);
  uint64_t weights[kPerThread];
  uint64_t own = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = first + i;
    weights[i] = c < end ? row.Weight(LogitOf(WeightedRow::KeyOfCandidate(candidates[c]))) : 0;
    own += weights[i];
  }
  const uint64_t through_lane = gpu::WarpScan(own);
  if (gpu::LaneId() == gpu::kWarpSize - 1) shared->scan[gpu::WarpId()] = through_lane;
  __syncthreads();
  uint64_t before = through_lane - own;
  uint64_t sum = 0;
  for (int warp = 0; warp < kSampleWarps; ++warp) {
    if (warp < gpu::WarpId()) before += shared->scan[warp];
    sum += shared->scan[warp];
  }
  if (sum == 0) return;

  // The candidate of this thread with which the sum reaches `need`, and the sum with it.
  const auto find = [&](uint64_t need, uint64_t* through) {
    uint64_t amount = before;
    int found = -1;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (amount < need && need <= amount + weights[i]) {
        found = first + i;
        *through = amount + weights[i];
      }
      amount += weights[i];
    }
    return found;
  };
  uint64_t through = 0;
  if (params.top_p < 1.0F) {
    if (find(MassOf(params.top_p, sum), &through) >= 0) shared->found_before = through;
    __syncthreads();
    sum = shared->found_before;
  }
  const int chosen = find(TargetOf(params.uniform, sum), &through);
  if (chosen >= 0) *token_id = WeightedRow::IdOfCandidate(candidates[chosen]);
}

}  // namespace nibble::kernels::cuda
