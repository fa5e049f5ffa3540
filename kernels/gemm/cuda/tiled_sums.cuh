// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What becomes of kTiled's sums: those of the parts of k, the way to D, and the sum over blocks
// that shared k.
#pragma once

#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/gemm/cuda/gemm_epilogue.cuh"
#include "kernels/gemm/cuda/gemm_tile.cuh"

namespace nibble::kernels::cuda {

constexpr int kUnits = kTiledUnitsPerWarp;
constexpr int kWarpChannels = kUnits * static_cast<int>(kUnitChannels);
constexpr int kTiledWarps = kTiledThreads / gpu::kWarpSize;

template <Form kForm, int kTileN>
using TiledSums = Sum<kForm>[kUnits][kTileN / kTileTokens][4];

// Through shared memory, 8 tokens at a time: sums lie across lanes by channel, D wants them along
// rows. With rows of 36 words neither side has bank conflicts.
template <Form kForm, int kTileN>
__device__ __forceinline__ void StoreTile(const GemmKernelArgs& args, const BlockWork& work,
                                          int unit, const TiledSums<kForm, kTileN>& sums) {
  constexpr int kPitch = 36;
  static_assert(kWarpChannels == 4 * kElements);
  auto* const shared = gpu::SharedAs<Sum<kForm>>() + gpu::WarpId() * kTileTokens * kPitch;
  const int lane = gpu::LaneId();
  const int channel = unit * static_cast<int>(kUnitChannels) + lane % 4 * kElements;
#pragma unroll
  for (int tile = 0; tile < kTileN / kTileTokens; ++tile) {
    if (work.row_begin + tile * kTileTokens >= work.row_end) return;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        shared[(lane % 4 * 2 + i % 2) * kPitch + u * static_cast<int>(kUnitChannels) + lane / 4 +
               i / 2 * 8] = sums[u][tile][i];
      }
    }
    __syncwarp();
    Sum<kForm> mine[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      mine[i] = shared[lane / 4 * kPitch + lane % 4 * kElements + i];
    }
    const int row = work.row_begin + tile * kTileTokens + lane / 4;
    if (row < work.row_end) {
      if (args.split_k > 1) {
        const int64_t at =
            (int64_t{blockIdx.y} * args.rows + row) * args.num_units * kUnitChannels + channel;
        auto* const partials = static_cast<Sum<kForm>*>(args.partials) + at;
#pragma unroll
        for (int i = 0; i < kElements; ++i) partials[i] = mine[i];
      } else {
        StoreOutputs<kForm>(args, work.weight, row, channel, mine);
      }
    }
    __syncwarp();
  }
}

// Sums of the parts of k so far, where the order of sums matters: in registers, or in shared
// memory, each thread's apart, where those are needed for the scales of groups.
template <Form kForm, int kTileN>
class PartTotals {
 public:
  static constexpr bool kShared = kForm == Form::kFloatScales;
  __device__ __forceinline__ explicit PartTotals(void* shared)
      : shared_(static_cast<float*>(shared) + threadIdx.x) {
    if constexpr (!SumsAreExact(kForm)) {
      ForEach([&](int u, int tile, int i) { At(u, tile, i) = 0.0F; });
    }
  }
  // Takes what `sums` has.
  __device__ __forceinline__ void Add(TiledSums<kForm, kTileN>* sums) {
    if constexpr (!SumsAreExact(kForm)) {
      ForEach([&](int u, int tile, int i) {
        At(u, tile, i) += (*sums)[u][tile][i];
        (*sums)[u][tile][i] = 0.0F;
      });
    }
  }
  __device__ __forceinline__ void Finish(TiledSums<kForm, kTileN>* sums) {
    if constexpr (!SumsAreExact(kForm)) {
      ForEach([&](int u, int tile, int i) { (*sums)[u][tile][i] = At(u, tile, i); });
    }
  }

 private:
  template <typename Body>
  static __device__ __forceinline__ void ForEach(const Body& body) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int tile = 0; tile < kTileN / kTileTokens; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) body(u, tile, i);
      }
    }
  }
  __device__ __forceinline__ float& At(int u, int tile, int i) {
    if constexpr (kShared) {
      return shared_[((u * (kTileN / kTileTokens) + tile) * 4 + i) * kTiledThreads];
    } else {
      return registers_[u][tile][i];
    }
  }
  float* shared_;
  float registers_[kUnits][kTileN / kTileTokens][4];
};

// Adds the partial sums of the blocks that shared k, in rising order: 8 channels of a row a thread.
template <Form kForm>
__global__ __launch_bounds__(128) void ReduceKernel(const GemmKernelArgs args) {
  const int chunks = args.num_units * static_cast<int>(kUnitChannels) / kElements;
  const int64_t index = int64_t{blockIdx.x} * 128 + threadIdx.x;
  if (index >= int64_t{args.rows} * chunks) return;
  const auto row = static_cast<int>(index / chunks);
  const int channel = static_cast<int>(index % chunks) * kElements;
  if (channel >= args.n) return;
  const int64_t stride = int64_t{args.rows} * chunks * kElements;
  const auto* const partials = static_cast<const Sum<kForm>*>(args.partials) + index * kElements;
  Sum<kForm> sums[kElements] = {};
  for (int split = 0; split < args.split_k; ++split) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) sums[i] += partials[split * stride + i];
  }
  StoreOutputs<kForm>(args, args.weight, row, channel, sums);
}

}  // namespace nibble::kernels::cuda
