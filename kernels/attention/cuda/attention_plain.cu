// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Attention in float32, for any head_dim and any types: exactness mode, and the shapes that the
// tensor-core kernels do not have. The operations of kernels/attention/attention_tile_impl.h in
// their order, so that a context of one segment has the bits of the CPU's kernels (merging takes
// another exp there).
//
// What a tile does to a row is in attention_plain_row.cuh.
#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/attention/cuda/attention_plain_row.cuh"
#include "kernels/attention/cuda/attention_units.cuh"

namespace nibble::kernels::cuda {
namespace plain {

template <typename Kv>
__device__ void RunSegment(const AttentionParams& p, const WorkItem& item, int segment,
                           Shared* shared, RowState (&states)[kWarpRows]) {
  // Positions that any row of the block sees.
  const int first_visible = FirstVisible(p, RowPosition(p, item.task, 0));
  const int end_visible = RowPosition(p, item.task, item.task.num_rows - 1) + 1;
  const int begin = max(first_visible, segment * kSegmentKeys);
  const int end = min(end_visible, (segment + 1) * kSegmentKeys);
  const int first_row = gpu::WarpId() * kWarpRows;
  for (int tile = begin / kTileKeys * kTileKeys; tile < end; tile += kTileKeys) {
    LoadTile<Kv>(p, item, tile, max(begin, tile), min(end, tile + kTileKeys), shared);
    int first[kWarpRows];
    int last[kWarpRows];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const bool exists = first_row + r < item.task.num_rows;
      const int position = exists ? RowPosition(p, item.task, first_row + r) : -1;
      first[r] = max(FirstVisible(p, position) - tile, 0);
      last[r] = min(position + 1 - tile, kTileKeys);
      if (first[r] < last[r]) ScoreRow(p, first_row + r, first[r], last[r], shared, &states[r]);
    }
    AddValues<Kv>(p, *shared, first_row, first, last, states);
    __syncthreads();
  }
}

template <typename Kv, typename Activation>
__device__ void RunItem(const AttentionParams& p, const WorkItem& item, Shared* shared) {
  LoadQueries<Activation>(p, item, shared);
  RowState totals[kWarpRows];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) Clear(&totals[r]);
  const bool split = item.task.num_units > 1;
  const int first_segment =
      max(item.segment_begin, FirstVisible(p, RowPosition(p, item.task, 0)) / kSegmentKeys);
  for (int segment = first_segment; segment < item.segment_end; ++segment) {
    RowState states[kWarpRows];
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) Clear(&states[r]);
    RunSegment<Kv>(p, item, segment, shared, states);
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const int row = gpu::WarpId() * kWarpRows + r;
      if (row >= item.task.num_rows) continue;
      if (split) {
        const int64_t state = StateRow(p, item, segment, row);
        if (gpu::LaneId() == 0) p.state_sums[state] = make_float2(states[r].max, states[r].sum);
#pragma unroll
        for (int c = 0; c < kMaxColumns; ++c) {
          const int column = gpu::LaneId() + c * gpu::kWarpSize;
          if (column < p.head_dim) p.states[state * p.head_dim + column] = states[r].acc[c];
        }
      } else if (!IsEmpty(states[r].max, states[r].sum)) {
        const MergeFactors factors = Factors<NaturalExp>(&totals[r].max, states[r].max);
        totals[r].sum = Merge(totals[r].sum, states[r].sum, factors);
#pragma unroll
        for (int c = 0; c < kMaxColumns; ++c) {
          totals[r].acc[c] = Merge(totals[r].acc[c], states[r].acc[c], factors);
        }
      }
    }
  }
  if (split) {
    if (IsLastOfTask(p, item, &shared->last)) {
      MergeStates<NaturalExp, Activation>(p, item, kSegmentKeys);
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = gpu::WarpId() * kWarpRows + r;
    if (row >= item.task.num_rows) continue;
    const float inverse = Reciprocal(totals[r].sum);
    const int64_t out = RowOffset(p, item, row, p.out_stride);
#pragma unroll
    for (int c = 0; c < kMaxColumns; ++c) {
      const int column = gpu::LaneId() + c * gpu::kWarpSize;
      if (column < p.head_dim) StoreAs<Activation>(p.out, out + column, totals[r].acc[c] * inverse);
    }
  }
}

template <typename Kv, typename Activation>
__global__ void __launch_bounds__(kThreads)
    PlainAttention(const __grid_constant__ AttentionParams p) {
  Shared* const shared = gpu::SharedAs<Shared>();
  const int num_items = NumWorkItems(p);
  for (int i = static_cast<int>(blockIdx.x); i < num_items; i += static_cast<int>(gridDim.x)) {
    RunItem<Kv, Activation>(p, LoadWorkItem(p, i), shared);
    __syncthreads();
  }
}

template <typename Kv, typename Activation>
absl::Status Launch(const AttentionParams& params, int64_t num_blocks, cudaStream_t stream) {
  return gpu::Launch(
      PlainAttention<Kv, Activation>,
      {.grid = {static_cast<unsigned>(num_blocks)},
       .block = {kThreads},
       .shared_bytes = static_cast<size_t>(PlainAttentionSharedBytes(params.head_dim)),
       .stream = stream},
      params);
}

template <typename Kv>
AttentionLauncher LauncherOf(DType activation) {
  return activation == DType::kF32 ? Launch<Kv, float> : Launch<Kv, gpu::Bf16>;
}

}  // namespace plain

int64_t PlainAttentionSharedBytes(int64_t head_dim) {
  return static_cast<int64_t>(sizeof(plain::Shared)) +
         (kPlainRows * head_dim + plain::kTileKeys * (head_dim + 1)) *
             static_cast<int64_t>(sizeof(float));
}

AttentionLauncher PlainAttentionLauncher(DType kv_dtype, DType activation) {
  if (kv_dtype == DType::kF32) return plain::LauncherOf<float>(activation);
  if (kv_dtype == DType::kBf16) return plain::LauncherOf<gpu::Bf16>(activation);
  return plain::LauncherOf<int8_t>(activation);
}

}  // namespace nibble::kernels::cuda
