// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the warps of the wgmma kernel share: its shared memory, the ring's positions, and the list
// of tiles, which the producer and the math warpgroups walk through on their own.
#pragma once

#include "base/cuda/barrier.cuh"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/gemm/cuda/wgmma_launch.h"
#include "kernels/gemm/cuda/wgmma_schedule.h"

namespace nibble::kernels::cuda {

constexpr int kWarpgroupSize = 128;
constexpr int kMathWarps = 8;

template <Form kForm, int kTokens>
struct WgmmaShared {
  static constexpr int kStages = WgmmaStages(kForm, kTokens);
  static constexpr int kScaleBytes = ScaleStageBytes(kForm);
  static constexpr int kZeroBytes = ZeroStageBytes(kForm);
  static_assert(kStages >= 3);

  alignas(1024) uint8_t tokens[kStages][kTokens * kWgmmaStageK];
  alignas(128) uint8_t codes[kStages][kWgmmaUnits][UnitStageBytes(kForm)];
  // Forms without them have an element that nobody uses.
  alignas(128) uint8_t scales[kStages][kWgmmaUnits][kScaleBytes == 0 ? 1 : kScaleBytes];
  alignas(128) uint8_t zeros[kStages][kWgmmaUnits][kZeroBytes == 0 ? 1 : kZeroBytes];
  // Outputs on their way, of each math warpgroup: [tokens][64 channels and a gap].
  alignas(16) float staged[2][WgmmaStagedTokens(kTokens) * kWgmmaStagedStride];
  gpu::Barrier full[kStages];
  gpu::Barrier empty[kStages];
  uint8_t eights[64];               // zero points of weights that have none
  int starts[kWgmmaMaxGroups + 1];  // tiles of all groups before
  int is_last[2];                   // of the parts of k that a math warpgroup has
};

// Where a warp is in the ring. Parities as BarrierWait wants them of `full`; of `empty` the other.
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct WgmmaWork {
  GroupedWeights::Entry weight;
  int channel;    // first of the tile
  int row_begin;  // of D
  int row_end;    // of the group: the tile may end before
  int stage_begin;
  int stage_end;
  int split;
  int output_tile;
};

struct GroupRows {
  int begin;
  int end;
};
// Clamped: they come from device memory.
__device__ __forceinline__ GroupRows RowsOfGroup(const GemmKernelArgs& args, int group) {
  const int begin = min(max(args.offsets[group], 0), args.rows);
  return {begin, min(max(args.offsets[group + 1], begin), args.rows)};
}

// starts[g]: tiles of all groups before g, starts[num_groups] that of all. By one warp.
template <int kTokens>
__device__ __forceinline__ void CountTiles(const WgmmaArgs& args, int* starts) {
  const int lane = gpu::LaneId();
  const int num_groups = args.gemm.num_groups;
  int before = 0;
  for (int base = 0; base < num_groups; base += gpu::kWarpSize) {
    int tiles = 0;
    if (base + lane < num_groups) {
      const GroupRows rows = RowsOfGroup(args.gemm, base + lane);
      tiles = (rows.end - rows.begin + kTokens - 1) / kTokens * args.grid.channel_tiles;
    }
    const int sum = gpu::WarpScan(tiles);  // of lanes up to this one
    if (base + lane < num_groups) starts[base + lane] = before + sum - tiles;
    before += __shfl_sync(gpu::kFullMask, sum, gpu::kWarpSize - 1);
  }
  if (lane == 0) starts[num_groups] = before;
}

template <int kTokens>
__device__ __forceinline__ WgmmaWork WorkAt(const WgmmaArgs& args, const int* starts, int index) {
  WgmmaWork work;
  if (args.gemm.entries == nullptr) {
    const WgmmaTile tile = WgmmaTileAt(args.grid, index);
    work.weight = args.gemm.weight;
    work.channel = tile.channel_tile * kWgmmaChannels;
    work.row_begin = tile.token_tile * kTokens;
    work.row_end = args.gemm.rows;
    work.stage_begin = tile.stage_begin;
    work.stage_end = tile.stage_end;
    work.split = tile.split;
    work.output_tile = tile.channel_tile * args.grid.token_tiles + tile.token_tile;
    return work;
  }
  const int group = WgmmaGroupAt(starts, args.gemm.num_groups, index);
  const GroupRows rows = RowsOfGroup(args.gemm, group);
  const int token_tiles = (rows.end - rows.begin + kTokens - 1) / kTokens;
  const int within = index - starts[group];
  work.weight = args.gemm.entries[group];
  work.channel = within / token_tiles * kWgmmaChannels;
  work.row_begin = rows.begin + within % token_tiles * kTokens;
  work.row_end = rows.end;
  work.stage_begin = 0;
  work.stage_end = args.grid.num_stages;
  work.split = 0;
  work.output_tile = 0;
  return work;
}

}  // namespace nibble::kernels::cuda
