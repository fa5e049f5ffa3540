// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Attention on tensor cores (mma.sync m16n8k16, sm_80 and later): bfloat16 queries, a bfloat16 or
// int8 cache. README.md draws it. Two forms with the same operations for every row, hence the same
// bits:
//
//   narrow  16 rows a block; its 4 warps share the keys of a tile for the scores and the columns of
//           the values for the sums: decode, where memory is the limit
//   wide    64 rows a block, 16 for each warp: chunks
//
// What happens to a tile is in attention_mma_tile.cuh, to a row's state in attention_mma_state.cuh.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "base/cuda/float16.cuh"
#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/attention/cuda/attention_mma_state.cuh"
#include "kernels/attention/cuda/attention_mma_tile.cuh"
#include "kernels/attention/cuda/attention_tile.cuh"
#include "kernels/attention/cuda/attention_units.cuh"

namespace nibble::kernels::cuda::mma {

constexpr int kSegmentKeys = static_cast<int>(kMmaSegmentKeys);
constexpr int kSegmentTiles = kSegmentKeys / kTileKeys;

template <int kHeadDim, typename Kv, bool kWide>
struct Shared {
  Tiles<kHeadDim, Kv> tiles;
  struct Nothing {};
  std::conditional_t<kWide, Nothing, Exchange<Kv>> exchange;
  WorkItem item;  // registers are short
  int last;
};

template <int kHeadDim, typename Kv, bool kWide>
__device__ __forceinline__ void RunItem(const AttentionParams& p,
                                        Shared<kHeadDim, Kv, kWide>* shared) {
  const WorkItem& item = shared->item;
  constexpr int kColumns = kWide ? kHeadDim / 8 : kHeadDim / 32;
  const int warp_row = kWide ? gpu::WarpId() * 16 : 0;
  const int column = kWide ? 0 : gpu::WarpId() * (kHeadDim / kWarps);

  // Positions that any row of the block sees, and tiles of them that the unit has.
  const int first_visible = FirstVisible(p, RowPosition(p, item.task, 0));
  const int end_visible =
      item.task.num_segments == 0 ? 0 : RowPosition(p, item.task, item.task.num_rows - 1) + 1;
  const int begin = max(first_visible, item.segment_begin * kSegmentKeys);
  const int end = min(end_visible, item.segment_end * kSegmentKeys);
  const int first_tile = begin / kTileKeys;
  const int end_tile = begin < end ? (end + kTileKeys - 1) / kTileKeys : first_tile;

  TileLoader<kHeadDim, Kv> loader{.begin = first_visible, .end = end_visible};
  if (first_tile < end_tile) loader.Start(p, item, first_tile * kTileKeys, 0, &shared->tiles);
  uint32_t q[kHeadDim / 16][4];
  LoadQueries<kHeadDim>(p, item, kWide ? 64 : 16, warp_row, shared->tiles.QueryRows(), q);

  const Positions positions = FindPositions(p, item.task, warp_row);
  const bool split = item.task.num_units > 1;
  State<kColumns> total;
  State<kColumns> state;
  total.Clear();
  state.Clear();
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const int stage = (tile - first_tile) % 2;
    loader.Wait(stage, &shared->tiles);
    if (tile + 1 < end_tile) {
      loader.Start(p, item, (tile + 1) * kTileKeys, 1 - stage, &shared->tiles);
    }
    const TileView<kHeadDim> view = loader.View(stage, &shared->tiles);
    if constexpr (kWide) {
      RunWideTile<kHeadDim, Kv>(p, positions, tile * kTileKeys, view, q, &state);
    } else {
      RunNarrowTile<kHeadDim, Kv>(p, positions, tile * kTileKeys, view, q, &shared->exchange,
                                  &state);
    }
    if ((tile + 1) % kSegmentTiles != 0 && tile + 1 != end_tile) continue;
    if (split) {
      StoreState<kHeadDim>(p, item, tile / kSegmentTiles, warp_row, column, state);
    } else {
      total.Add(state);
    }
    state.Clear();
  }
  if (!split) {
    StoreOutput(p, item, warp_row, column, total);
  } else if (IsLastOfTask(p, item, &shared->last)) {
    MergeStates<BinaryExp, gpu::Bf16>(p, item, kSegmentKeys);
  }
}

template <int kHeadDim, typename Kv, bool kWide>
__global__ void __launch_bounds__(kThreads, kHeadDim <= 128 ? 2 : 1)
    MmaAttention(const __grid_constant__ AttentionParams p) {
  auto* const shared = gpu::SharedAs<Shared<kHeadDim, Kv, kWide>>();
  const int num_items = NumWorkItems(p);
  for (int i = static_cast<int>(blockIdx.x); i < num_items; i += static_cast<int>(gridDim.x)) {
    if (threadIdx.x == 0) shared->item = LoadWorkItem(p, i);
    __syncthreads();
    RunItem<kHeadDim, Kv, kWide>(p, shared);
    __syncthreads();
  }
}

template <int kHeadDim, typename Kv, bool kWide>
absl::Status Launch(const AttentionParams& params, int64_t num_blocks, cudaStream_t stream) {
  return gpu::Launch(MmaAttention<kHeadDim, Kv, kWide>,
                     {.grid = {static_cast<unsigned>(num_blocks)},
                      .block = {kThreads},
                      .shared_bytes = sizeof(Shared<kHeadDim, Kv, kWide>),
                      .stream = stream},
                     params);
}

// Head sizes whose sums of 64 rows do not fit in the registers have the narrow form alone.
template <int kHeadDim>
constexpr MmaInstance InstanceOf() {
  constexpr bool kHasWide = kHeadDim <= 128;
  MmaInstance instance{
      .head_dim = kHeadDim,
      .bf16 = {Launch<kHeadDim, gpu::Bf16, false>, nullptr},
      .int8 = {Launch<kHeadDim, int8_t, false>, nullptr},
      .shared_bytes = static_cast<int64_t>(std::max(sizeof(Shared<kHeadDim, gpu::Bf16, false>),
                                                    sizeof(Shared<kHeadDim, int8_t, false>)))};
  if constexpr (kHasWide) {
    instance.bf16[1] = Launch<kHeadDim, gpu::Bf16, true>;
    instance.int8[1] = Launch<kHeadDim, int8_t, true>;
  }
  return instance;
}

}  // namespace nibble::kernels::cuda::mma
