// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What all attention kernels do alike: finding their unit and its rows, and merging states.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/float16.cuh"
#include "kernels/attention/cuda/attention_kernels.h"
#include "kernels/attention/cuda/attention_plan.h"

namespace nibble::kernels::cuda {

// A negative infinity: the maximum of a state that no key has entered.
__device__ __forceinline__ float EmptyMax() {
  return __int_as_float(static_cast<int>(0xFF800000U));
}

__device__ __forceinline__ int NumWorkItems(const AttentionParams& p) {
  const auto* header = reinterpret_cast<const AttentionPlanHeader*>(p.plan);
  return header->num_units[p.is_wide] * p.num_kv_heads;
}

struct WorkItem {
  AttentionTask task;
  int task_idx;
  int kv_head;
  int segment_begin;
  int segment_end;
};
// Neighbors in the grid are KV heads of one unit, which lie side by side in the cache.
__device__ __forceinline__ WorkItem LoadWorkItem(const AttentionParams& p, int idx) {
  const auto* header = reinterpret_cast<const AttentionPlanHeader*>(p.plan);
  const auto* units =
      reinterpret_cast<const AttentionUnit*>(p.plan + header->units_begin[p.is_wide]);
  const auto* tasks = reinterpret_cast<const AttentionTask*>(p.plan + header->tasks_begin);
  const AttentionUnit unit = units[idx / p.num_kv_heads];
  return {.task = tasks[unit.task],
          .task_idx = unit.task,
          .kv_head = idx % p.num_kv_heads,
          .segment_begin = unit.segment_begin,
          .segment_end = unit.segment_end};
}

// Position of a row's token.
__device__ __forceinline__ int RowPosition(const AttentionParams& p, const AttentionTask& task,
                                           int row) {
  return task.first_position + (task.row_begin + row) / p.group;
}
// The first position that a token sees.
__device__ __forceinline__ int FirstVisible(const AttentionParams& p, int position) {
  return p.window > 0 && position >= p.window ? position - p.window + 1 : 0;
}
// Element 0 of a row's head in q (`stride` p.q_stride) or out.
__device__ __forceinline__ int64_t RowOffset(const AttentionParams& p, const WorkItem& item,
                                             int row, int64_t stride) {
  const int in_sequence = item.task.row_begin + row;
  const int head = item.kv_head * p.group + in_sequence % p.group;
  return (item.task.token_begin + in_sequence / p.group) * stride +
         static_cast<int64_t>(head) * p.head_dim;
}
// Of a head's position, among all of the cache.
__device__ __forceinline__ int64_t CacheRow(const AttentionParams& p, const WorkItem& item,
                                            int position) {
  const auto unsigned_position = static_cast<unsigned>(position);
  const unsigned block = unsigned_position / static_cast<unsigned>(p.block_size);
  const int64_t block_id = p.plan[item.task.table_begin + static_cast<int>(block)];
  return (block_id * p.num_kv_heads + item.kv_head) * p.block_size +
         (unsigned_position - block * static_cast<unsigned>(p.block_size));
}
__device__ __forceinline__ int64_t StateRow(const AttentionParams& p, const WorkItem& item,
                                            int segment, int row) {
  return (item.task.state_begin + static_cast<int64_t>(segment) * item.task.num_rows + row) *
             p.num_kv_heads +
         item.kv_head;
}

// total = total * keep + part * add, both relative to the larger maximum.
struct MergeFactors {
  float keep;
  float add;
};
// Exp: relative weight of two maxima that are some units apart. Empty parts must not come here.
template <class Exp>
__device__ __forceinline__ MergeFactors Factors(float* total_max, float part_max) {
  if (*total_max == EmptyMax()) {
    *total_max = part_max;
    return {.keep = 0.0F, .add = 1.0F};
  }
  const float max = fmaxf(*total_max, part_max);
  const MergeFactors factors{.keep = Exp::Of(*total_max - max), .add = Exp::Of(part_max - max)};
  *total_max = max;
  return factors;
}
// A state whose keys were all NaN is not empty: its sum is NaN.
__device__ __forceinline__ bool IsEmpty(float max, float sum) {
  return max == EmptyMax() && sum == 0.0F;
}
__device__ __forceinline__ float Merge(float total, float part, MergeFactors factors) {
  return total * factors.keep + part * factors.add;
}
__device__ __forceinline__ float Reciprocal(float sum) { return sum == 0.0F ? 0.0F : 1.0F / sum; }

template <typename T>
__device__ __forceinline__ void StoreAs(void* out, int64_t idx, float value) {
  if constexpr (sizeof(T) == 4) {
    static_cast<float*>(out)[idx] = value;
  } else {
    static_cast<gpu::Bf16*>(out)[idx] = gpu::ToBf16(value);
  }
}

// Called by the whole block when it has written the states of its unit: true for the block that
// is the last of the task, which sees the states of all. `last` is shared memory.
__device__ __forceinline__ bool IsLastOfTask(const AttentionParams& p, const WorkItem& item,
                                             int* last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* const done =
        p.num_done + static_cast<int64_t>(item.task_idx) * p.num_kv_heads + item.kv_head;
    *last = atomicAdd(done, 1) == item.task.num_units - 1 ? 1 : 0;
    if (*last != 0) *done = 0;  // for the next launch
  }
  __syncthreads();
  __threadfence();
  return *last != 0;
}

// Merges the task's states in ascending order and writes its output. Segments before the window
// hold nothing.
template <class Exp, typename Out>
__device__ __forceinline__ void MergeStates(const AttentionParams& p, const WorkItem& item,
                                            int segment_keys) {
  constexpr int kAtOnce = 8;  // loads under way: the chain of factors is short, memory is far
  const int first_segment = FirstVisible(p, RowPosition(p, item.task, 0)) / segment_keys;
  const int num_quads = item.task.num_rows * p.head_dim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < num_quads; i += static_cast<int>(blockDim.x)) {
    const int row = i * 4 / p.head_dim;
    const int column = i * 4 - row * p.head_dim;
    float max = EmptyMax();
    float sum = 0.0F;
    float acc[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    for (int segment = first_segment; segment < item.task.num_segments; segment += kAtOnce) {
      float2 sums[kAtOnce];
      float4 parts[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int64_t state = StateRow(p, item, min(segment + j, item.task.num_segments - 1), row);
        sums[j] = p.state_sums[state];
        parts[j] = *reinterpret_cast<const float4*>(p.states + state * p.head_dim + column);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (segment + j >= item.task.num_segments || IsEmpty(sums[j].x, sums[j].y)) continue;
        const MergeFactors factors = Factors<Exp>(&max, sums[j].x);
        sum = Merge(sum, sums[j].y, factors);
        acc[0] = Merge(acc[0], parts[j].x, factors);
        acc[1] = Merge(acc[1], parts[j].y, factors);
        acc[2] = Merge(acc[2], parts[j].z, factors);
        acc[3] = Merge(acc[3], parts[j].w, factors);
      }
    }
    const float inverse = Reciprocal(sum);
    const int64_t out = RowOffset(p, item, row, p.out_stride) + column;
#pragma unroll
    for (int j = 0; j < 4; ++j) StoreAs<Out>(p.out, out + j, acc[j] * inverse);
  }
}

}  // namespace nibble::kernels::cuda
