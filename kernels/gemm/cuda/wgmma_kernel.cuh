// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// D^T = W * A^T on Hopper: weights are the register operand of wgmma, decoded by the warpgroups
// that multiply them, tokens the operand in shared memory. README.md draws it.
//
//   warpgroup 0   producer: weights by bulk copies, tokens by TMA or, gathered, by cp.async
//   warpgroup 1   output channels 0..63 of the tile       } decode, multiply, scale, store
//   warpgroup 2   output channels 64..127 of the tile     }
//
// A stage of the ring has 128 k of both operands. full[s]: the copies into stage s have arrived;
// empty[s]: all math warps are done with it.
#pragma once

#include "base/cuda/launch.h"
#include "kernels/gemm/cuda/wgmma_epilogue.cuh"
#include "kernels/gemm/cuda/wgmma_mainloop.cuh"
#include "kernels/gemm/cuda/wgmma_producer.cuh"

namespace nibble::kernels::cuda {

// Of the 504 registers that a lane of each of the three warpgroups has together.
constexpr int kProducerRegisters = 56;
constexpr int kMathRegisters = 224;

template <typename Codec, int kTokens, bool kGathers>
__device__ __forceinline__ void InitShared(WgmmaShared<Codec::kForm, kTokens>* shared) {
  for (int s = 0; s < WgmmaStages(Codec::kForm, kTokens); ++s) {
    // The bytes of the weights, and those of the tokens or the threads that gather them.
    gpu::BarrierInit(&shared->full[s], 1 + (kGathers ? kWarpgroupSize : 1));
    gpu::BarrierInit(&shared->empty[s], kMathWarps);
  }
  gpu::BarrierFenceInit();
  for (uint8_t& zero : shared->eights) zero = 8;
}

template <typename Codec, int kTokens, bool kGathers, int kGroups>
__global__ void __launch_bounds__(3 * kWarpgroupSize, 1)
    WgmmaGemm(const __grid_constant__ gpu::TensorMap map, const WgmmaArgs args) {
  auto* const shared = gpu::SharedAs<WgmmaShared<Codec::kForm, kTokens>>();
  if (threadIdx.x == 0) InitShared<Codec, kTokens, kGathers>(shared);
  if (args.gemm.entries != nullptr && gpu::WarpId() == 1) CountTiles<kTokens>(args, shared->starts);
  __syncthreads();
  const int num_tiles =
      args.gemm.entries != nullptr ? shared->starts[args.gemm.num_groups] : args.grid.num_tiles();
  if (threadIdx.x < kWarpgroupSize) {
    RegistersDecrease<kProducerRegisters>();
    if constexpr (kGathers) {
      GatherTiles<Codec::kForm, kTokens>(args, num_tiles, shared);
    } else {
      CopyTiles<Codec::kForm, kTokens>(map, args, num_tiles, shared);
    }
  } else {
    RegistersIncrease<kMathRegisters>();
    RingPosition ring;
    for (int i = static_cast<int>(blockIdx.x); i < num_tiles; i += static_cast<int>(gridDim.x)) {
      const WgmmaWork work = WorkAt<kTokens>(args, shared->starts, i);
      typename Codec::Sum sums[kTokens / 2];
      MultiplyTile<Codec, kTokens, kGroups>(args.gemm, work, shared, &ring, sums);
      if (args.grid.splits == 1 || AddParts<kTokens>(args, work, shared, sums)) {
        StoreTile<Codec::kForm, kTokens>(args.gemm, work, shared, sums);
      }
    }
  }
}

template <typename Codec, bool kGathers, int kGroups, int kTokens>
absl::Status LaunchWgmmaTile(const WgmmaLaunch& launch) {
  if constexpr (WgmmaTakes(Codec::kForm, kGathers, kGroups > 1, kTokens)) {
    using Shared = WgmmaShared<Codec::kForm, kTokens>;
    static_assert(sizeof(Shared) <= kWgmmaSharedBytes);
    return gpu::Launch(WgmmaGemm<Codec, kTokens, kGathers, kGroups>,
                       {.grid = {static_cast<unsigned>(launch.blocks)},
                        .block = {3 * kWarpgroupSize},
                        .shared_bytes = sizeof(Shared),
                        .stream = launch.stream},
                       launch.map, launch.args);
  } else {
    return Internal("gemm: no wgmma kernel with tiles of {} tokens", kTokens);
  }
}

template <typename Codec, bool kGathers, int kGroups>
absl::Status LaunchWgmmaGroups(const WgmmaLaunch& launch) {
  switch (launch.tokens) {
    case 8:
      return LaunchWgmmaTile<Codec, kGathers, kGroups, 8>(launch);
    case 16:
      return LaunchWgmmaTile<Codec, kGathers, kGroups, 16>(launch);
    case 32:
      return LaunchWgmmaTile<Codec, kGathers, kGroups, 32>(launch);
    case 64:
      return LaunchWgmmaTile<Codec, kGathers, kGroups, 64>(launch);
    case 96:
      return LaunchWgmmaTile<Codec, kGathers, kGroups, 96>(launch);
    case 128:
      return LaunchWgmmaTile<Codec, kGathers, kGroups, 128>(launch);
    case 192:
      return LaunchWgmmaTile<Codec, kGathers, kGroups, 192>(launch);
    case 256:
      return LaunchWgmmaTile<Codec, kGathers, kGroups, 256>(launch);
    default:
      return Internal("gemm: no wgmma kernel with tiles of {} tokens", launch.tokens);
  }
}

template <typename Codec, bool kGathers>
absl::Status LaunchWgmmaRows(const WgmmaLaunch& launch) {
  if constexpr (IsInt4(Codec::kForm)) {
    if (launch.args.gemm.group_shift == 5) return LaunchWgmmaGroups<Codec, kGathers, 4>(launch);
    if (launch.args.gemm.group_shift == 6) return LaunchWgmmaGroups<Codec, kGathers, 2>(launch);
  }
  return LaunchWgmmaGroups<Codec, kGathers, 1>(launch);
}

template <typename Codec>
absl::Status LaunchWgmma(const WgmmaLaunch& launch) {
  return launch.args.gemm.a_rows != nullptr ? LaunchWgmmaRows<Codec, true>(launch)
                                            : LaunchWgmmaRows<Codec, false>(launch);
}

}  // namespace nibble::kernels::cuda
