// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The producer warpgroup of the wgmma kernel: keeps the ring full, tile after tile.
#pragma once

#include "base/cuda/async_copy.cuh"
#include "kernels/gemm/cuda/wgmma_work.cuh"

namespace nibble::kernels::cuda {

// Lanes 0..7 of a warp bring the weights of 16 channels each, and arrive at full[s] once. Channels
// beyond the matrix are not copied: whatever the stage holds there reaches no output that is
// stored.
template <Form kForm, int kTokens>
__device__ __forceinline__ void CopyWeights(const GemmKernelArgs& args, const WgmmaWork& work,
                                            int k_stage, int stage,
                                            WgmmaShared<kForm, kTokens>* shared) {
  constexpr uint32_t kCodes = UnitStageBytes(kForm);
  const int lane = gpu::LaneId();
  const int first_unit = work.channel / static_cast<int>(kUnitChannels);
  const int num_units = min(kWgmmaUnits, args.num_units - first_unit);
  const int group = k_stage * kWgmmaStageK >> args.group_shift;
  const int num_groups = args.group_shift >= 7 ? 1 : kWgmmaStageK >> args.group_shift;
  const uint32_t scale_bytes = num_groups * (ScaleStageBytes(kForm) / 4);
  const uint32_t zero_bytes =
      work.weight.zeros == nullptr ? 0 : num_groups * (ZeroStageBytes(kForm) / 4);
  gpu::Barrier* const full = &shared->full[stage];
  if (lane == 0) {
    gpu::BarrierArriveExpectBytes(full, num_units * (kCodes + scale_bytes + zero_bytes));
  }
  if (lane >= num_units) return;
  const int64_t unit = first_unit + lane;
  gpu::BulkCopy(shared->codes[stage][lane],
                work.weight.codes + (unit * args.num_stages + k_stage) * kCodes, kCodes, full);
  const int64_t first_group = unit * args.num_scale_groups + group;
  if constexpr (ScaleStageBytes(kForm) > 0) {
    gpu::BulkCopy(shared->scales[stage][lane],
                  work.weight.scales + first_group * (ScaleStageBytes(kForm) / 4), scale_bytes,
                  full);
  }
  if constexpr (ZeroStageBytes(kForm) > 0) {
    if (zero_bytes > 0) {
      gpu::BulkCopy(shared->zeros[stage][lane],
                    work.weight.zeros + first_group * (ZeroStageBytes(kForm) / 4), zero_bytes,
                    full);
    }
  }
}

// Warp 0 brings the weights, warp 1 the tokens: the copy engine takes a while for each copy that it
// is given. The rest of the warpgroup ends.
template <Form kForm, int kTokens>
__device__ __forceinline__ void CopyTiles(const gpu::TensorMap& map, const WgmmaArgs& args,
                                          int num_tiles, WgmmaShared<kForm, kTokens>* shared) {
  constexpr int kStages = WgmmaShared<kForm, kTokens>::kStages;
  if (gpu::WarpId() > 1) return;
  RingPosition ring;
  for (int i = static_cast<int>(blockIdx.x); i < num_tiles; i += static_cast<int>(gridDim.x)) {
    const WgmmaWork work = WorkAt<kTokens>(args, shared->starts, i);
    for (int k_stage = work.stage_begin; k_stage < work.stage_end; ++k_stage) {
      gpu::BarrierWait(&shared->empty[ring.stage], ring.parity ^ 1);
      if (gpu::WarpId() == 0) {
        CopyWeights(args.gemm, work, k_stage, ring.stage, shared);
      } else if (gpu::LaneId() == 0) {
        gpu::Barrier* const full = &shared->full[ring.stage];
        gpu::BarrierArriveExpectBytes(full, kTokens * kWgmmaStageK);
        gpu::TensorCopy2d(shared->tokens[ring.stage], &map, k_stage * kWgmmaStageK, work.row_begin,
                          full);
      }
      __syncwarp();
      ring.Advance(kStages);
    }
  }
}

// The copy engine cannot gather rows: all threads do, 16 bytes at a time, where the engine's
// swizzle would have put them. A thread's copies are finished kBehind stages later, so that many
// are under way; it then arrives for that stage. The math warps give a stage back only when the
// next one is full: the ring has one stage more than are on their way, and that one.
template <Form kForm, int kTokens>
__device__ __forceinline__ void GatherTiles(const WgmmaArgs& args, int num_tiles,
                                            WgmmaShared<kForm, kTokens>* shared) {
  constexpr int kStages = WgmmaShared<kForm, kTokens>::kStages;
  constexpr int kBehind = kStages - 2 < 4 ? kStages - 2 : 4;
  static_assert(kBehind >= 1 && kStages >= kBehind + 2);
  constexpr int kChunks = kWgmmaStageK / 16;
  constexpr int kChunksOfThread = (kTokens * kChunks + kWarpgroupSize - 1) / kWarpgroupSize;
  const GemmKernelArgs& gemm = args.gemm;
  const int thread = static_cast<int>(threadIdx.x);
  const int chunk = thread % kChunks;
  RingPosition ring;
  RingPosition behind;
  int num_behind = 0;
  for (int i = static_cast<int>(blockIdx.x); i < num_tiles; i += static_cast<int>(gridDim.x)) {
    const WgmmaWork work = WorkAt<kTokens>(args, shared->starts, i);
    int from[kChunksOfThread];  // rows of A
#pragma unroll
    for (int c = 0; c < kChunksOfThread; ++c) {
      const int row = work.row_begin + thread / kChunks + c * (kWarpgroupSize / kChunks);
      from[c] = row < work.row_end ? gemm.a_rows[row] : -1;
    }
    for (int k_stage = work.stage_begin; k_stage < work.stage_end; ++k_stage) {
      gpu::BarrierWait(&shared->empty[ring.stage], ring.parity ^ 1);
      if (gpu::WarpId() == 0) CopyWeights(args.gemm, work, k_stage, ring.stage, shared);
      __syncwarp();
      const int k = k_stage * kWgmmaStageK + chunk * 16;
#pragma unroll
      for (int c = 0; c < kChunksOfThread; ++c) {
        const int token = thread / kChunks + c * (kWarpgroupSize / kChunks);
        if (token >= kTokens) break;
        // k beyond the row: what lies between rows meets weights of zero.
        const bool exists = from[c] >= 0 && k < gemm.a_row_bytes;
        gpu::CopyAsync16(
            shared->tokens[ring.stage] + token * kWgmmaStageK + (chunk ^ token % 8) * 16,
            exists ? gemm.a + from[c] * gemm.a_stride_bytes + k : gemm.a, !exists);
      }
      gpu::CopyAsyncCommit();
      ring.Advance(kStages);
      if (++num_behind > kBehind) {
        gpu::CopyAsyncWait<kBehind>();
        gpu::FenceProxyAsync();
        gpu::BarrierArrive(&shared->full[behind.stage]);
        behind.Advance(kStages);
        --num_behind;
      }
    }
  }
  gpu::CopyAsyncWait<0>();
  gpu::FenceProxyAsync();
  for (; num_behind > 0; --num_behind) {
    gpu::BarrierArrive(&shared->full[behind.stage]);
    behind.Advance(kStages);
  }
}

}  // namespace nibble::kernels::cuda
