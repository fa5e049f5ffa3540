// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// kSkinny: up to 16 tokens. Weights go from memory to registers, 2 to 4 KiB of each warp on their
// way; README.md has the arithmetic.
//
//   warp w of a block: part w % k_parts of k, 16 channels (w / k_parts) of the block's
//
// All warps go through their parts chunk by chunk (2 KiB of codes). While a chunk is multiplied,
// the weights of the next one arrive in registers and its tokens and scales in the other half of
// shared memory:
//
//   half: [k_parts][stages of a chunk][kTileN] rows of 128 bytes, then [warps][stages] scales
#pragma once

#include "base/cuda/async_copy.cuh"
#include "base/cuda/launch.h"
#include "base/cuda/memory.cuh"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/gemm/cuda/gemm_epilogue.cuh"
#include "kernels/gemm/cuda/gemm_stage.cuh"
#include "kernels/gemm/cuda/gemm_tile.cuh"

namespace nibble::kernels::cuda {

// What a warp of a block does.
struct SkinnyWarp {
  const uint8_t* codes;  // of this lane
  int unit;              // of 16 channels; beyond the weight: nothing to multiply
  int stage;             // of the chunk
  int stage_end;
};

template <Form kForm>
using RawChunk = uint4[SkinnyChunkStages(kForm)][kRawPieces<kForm>];

// The lane's first piece of a warp's channels: of the unit, or of rows g (and g + 8).
template <Form kForm>
__device__ __forceinline__ const uint8_t* LaneCodes(const GemmKernelArgs& args,
                                                    const uint8_t* codes, int unit) {
  const int lane = gpu::LaneId();
  if constexpr (IsHalf(kForm)) {
    return codes + (unit * kUnitChannels + lane / 4) * args.num_stages * kStageBytes +
           lane % 4 * kPieceBytes;
  } else {
    return codes + int64_t{unit} * args.num_stages * UnitStageBytes(kForm) + lane * kPieceBytes;
  }
}

template <Form kForm>
__device__ __forceinline__ void LoadRaw(const GemmKernelArgs& args, const SkinnyWarp& warp,
                                        int stage, RawChunk<kForm>& raw) {
#pragma unroll
  for (int c = 0; c < SkinnyChunkStages(kForm); ++c) {
    if (stage + c >= warp.stage_end) return;
#pragma unroll
    for (int i = 0; i < kRawPieces<kForm>; ++i) {
      int64_t at;
      if constexpr (IsHalf(kForm)) {
        at = (int64_t{i % 2 * 8} * args.num_stages + stage + c) * kStageBytes + i / 2 * 64;
      } else {
        at = int64_t{stage + c} * UnitStageBytes(kForm) + i * kUnitBytes;
      }
      raw[c][i] = gpu::LoadStreaming16(warp.codes + at);
    }
  }
}

// What a thread copies of the tokens: one piece of one row, of some slabs.
struct SkinnyCopy {
  int row;     // of A; -1: none
  int offset;  // in a slab, swizzled
  int piece;
  int slab;  // the first one, of [k_parts][stages of a chunk]
};

template <Form kForm, int kTileN>
__device__ __forceinline__ SkinnyCopy PlanCopy(const GemmKernelArgs& args, const BlockWork& work) {
  const auto thread = static_cast<int>(threadIdx.x);
  const int row = thread / kPieces % kTileN;
  SkinnyCopy copy;
  copy.row = work.row_begin + row < work.row_end ? RowOfA(args, work.row_begin + row) : -1;
  copy.piece = thread % kPieces;
  copy.offset =
      row * static_cast<int>(kStageBytes) + SwizzledPiece<kForm>(row, copy.piece) * kPieceBytes;
  copy.slab = thread / (kPieces * kTileN);
  return copy;
}

// Tokens of all parts and scales of this warp, for chunk `chunk`.
template <Form kForm, int kTileN>
__device__ __forceinline__ void CopyChunk(const GemmKernelArgs& args, const BlockWork& work,
                                          const SkinnyWarp& warp, const SkinnyCopy& copy, int chunk,
                                          uint8_t* buffer) {
  constexpr int kChunk = SkinnyChunkStages(kForm);
  const int num_slabs = args.k_parts * kChunk;
  if (copy.row >= 0) {
    const int slab_step = static_cast<int>(blockDim.x) / (kPieces * kTileN);
    for (int slab = copy.slab; slab < num_slabs; slab += slab_step) {
      const int part = slab / kChunk;
      const int stage = PartBegin(args, part) + chunk * kChunk + slab % kChunk;
      if (stage >= PartBegin(args, part + 1)) continue;
      CopyTokenPiece<kForm>(args,
                            buffer + slab * kTileN * static_cast<int>(kStageBytes) + copy.offset,
                            copy.row, stage * kStageBytes + copy.piece * kPieceBytes);
    }
  }
  if constexpr (IsInt4(kForm)) {
    constexpr int kScales = ScaleStageBytes(kForm) + ZeroStageBytes(kForm);
    uint8_t* const scales =
        buffer + num_slabs * kTileN * kStageBytes + gpu::WarpId() * kChunk * kScales;
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      const int stage = warp.stage + chunk * kChunk + c;
      if (stage < warp.stage_end) {
        CopyScales<kForm, 1>(args, work.weight, scales + c * kScales, warp.unit, stage);
      }
    }
  }
}

template <Form kForm, int kTileN>
__device__ __forceinline__ void MultiplyChunk(const GemmKernelArgs& args, const BlockWork& work,
                                              const RawChunk<kForm>& raw, int num_stages,
                                              const int (&offset)[1][2], const uint8_t* buffer,
                                              Sum<kForm> (&sums)[1][kTileN / kTileTokens][4]) {
  constexpr int kChunk = SkinnyChunkStages(kForm);
  constexpr int kScales = ScaleStageBytes(kForm) + ZeroStageBytes(kForm);
  constexpr int kHalfPieces = kRawPieces<kForm> / 2;
  const int warp = gpu::WarpId();
  const uint8_t* const tokens =
      buffer + (warp & (args.k_parts - 1)) * kChunk * kTileN * static_cast<int>(kStageBytes);
  const uint8_t* const scales =
      buffer + args.k_parts * kChunk * kTileN * kStageBytes + warp * kChunk * kScales;
#pragma unroll
  for (int c = 0; c < kChunk; ++c) {
    if (c >= num_stages) return;
    const auto pieces = [&](int /*unit*/, int half, uint4(&to)[kHalfPieces]) {
#pragma unroll
      for (int i = 0; i < kHalfPieces; ++i) to[i] = raw[c][half * kHalfPieces + i];
    };
    MultiplyStage<kForm>(args, work.weight.zeros != nullptr, pieces, scales + c * kScales, offset,
                         tokens + c * kTileN * kStageBytes, sums);
  }
}

// Sums of all parts, in rising order, to D.
template <Form kForm, int kTileN>
__device__ __forceinline__ void ReduceParts(const GemmKernelArgs& args, const BlockWork& work,
                                            const Sum<kForm> (&sums)[1][kTileN / kTileTokens][4]) {
  auto* const shared = gpu::SharedAs<Sum<kForm>>();  // [warps][kTileN][kSkinnySumPitch]
  const int lane = gpu::LaneId();
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < kTileN / kTileTokens; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = tile * kTileTokens + lane % 4 * 2 + i % 2;
      const int channel = lane / 4 + i / 2 * 8;
      shared[(gpu::WarpId() * kTileN + token) * kSkinnySumPitch + channel] = sums[0][tile][i];
    }
  }
  __syncthreads();
  const int rows = work.row_end - work.row_begin;
  const int channels = static_cast<int>(blockDim.x) / gpu::kWarpSize / args.k_parts *
                       static_cast<int>(kUnitChannels);
  for (auto i = static_cast<int>(threadIdx.x); i < channels * rows;
       i += static_cast<int>(blockDim.x)) {
    const int within = i % channels;
    const int token = i / channels;
    const int channel = work.channel_tile * channels + within;
    if (channel >= args.n) continue;
    Sum<kForm> sum = 0;
    for (int part = 0; part < args.k_parts; ++part) {
      const int warp = within / static_cast<int>(kUnitChannels) * args.k_parts + part;
      sum += shared[(warp * kTileN + token) * kSkinnySumPitch +
                    within % static_cast<int>(kUnitChannels)];
    }
    const int row = work.row_begin + token;
    float y = FinishSum<kForm>(sum, TokenScale<kForm>(args, row),
                               ChannelScale<kForm>(args, work.weight, channel));
    if (args.bias != nullptr) y += args.bias[channel];
    StoreOne(args.d, row * args.d.stride + channel, y);
  }
}

template <Form kForm, int kTileN>
__global__ __launch_bounds__(512, 1) void SkinnyKernel(const GemmKernelArgs args) {
  constexpr int kChunk = SkinnyChunkStages(kForm);
  BlockWork work;
  if (!FindWork<kTileN>(args, &work)) return;
  const int num_warps = static_cast<int>(blockDim.x) / gpu::kWarpSize;
  const int part = (gpu::WarpId() & (args.k_parts - 1));
  SkinnyWarp warp;
  warp.unit =
      work.channel_tile * (num_warps >> args.parts_shift) + (gpu::WarpId() >> args.parts_shift);
  warp.codes = LaneCodes<kForm>(args, work.weight.codes, warp.unit);
  warp.stage = PartBegin(args, part);
  warp.stage_end = PartBegin(args, part + 1);
  if (warp.unit >= args.num_units) warp.stage_end = warp.stage;
  const int longest = (args.num_stages + args.k_parts - 1) / args.k_parts;
  const int num_chunks = (longest + kChunk - 1) / kChunk;
  int offset[1][2] = {};
  LoadOffsets<kForm>(args, work.weight, warp.unit, offset);
  const SkinnyCopy pieces = PlanCopy<kForm, kTileN>(args, work);

  auto* const shared = gpu::SharedAs<uint8_t>();
  const int half_bytes = SkinnyBufferBytes(kForm, kTileN, args.k_parts);
  Sum<kForm> sums[1][kTileN / kTileTokens][4] = {};
  const auto load = [&](int chunk, RawChunk<kForm>& raw) {
    LoadRaw<kForm>(args, warp, warp.stage + chunk * kChunk, raw);
  };
  const auto copy = [&](int chunk) {
    if (chunk < num_chunks) {
      CopyChunk<kForm, kTileN>(args, work, warp, pieces, chunk, shared + chunk % 2 * half_bytes);
    }
    gpu::CopyAsyncCommit();
  };
  const auto multiply = [&](int chunk, RawChunk<kForm>& raw) {
    gpu::CopyAsyncWait<0>();
    __syncthreads();  // the chunk's tokens are there, and all are done with those before them
    copy(chunk + 1);
    MultiplyChunk<kForm, kTileN>(args, work, raw, warp.stage_end - warp.stage - chunk * kChunk,
                                 offset, shared + chunk % 2 * half_bytes, sums);
    load(chunk + 2, raw);
  };
  // Two chunks of weights are on their way but while one is multiplied.
  RawChunk<kForm> even = {};
  RawChunk<kForm> odd = {};
  load(0, even);
  load(1, odd);
  copy(0);
  for (int chunk = 0; chunk < num_chunks; chunk += 2) {
    multiply(chunk, even);
    if (chunk + 1 < num_chunks) multiply(chunk + 1, odd);
  }
  ReduceParts<kForm, kTileN>(args, work, sums);
}

template <Form kForm>
absl::Status LaunchSkinny(const GemmLaunch& launch) {
  const GemmPlan& plan = launch.plan;
  const GemmKernelArgs& args = launch.args;
  const int channel_tiles = (args.n + plan.tile_m - 1) / plan.tile_m;
  const gpu::LaunchConfig config = {
      .grid = {static_cast<unsigned>(channel_tiles) * static_cast<unsigned>(args.token_tiles)},
      .block = {static_cast<unsigned>(SkinnyWarps(args.k_parts) * gpu::kWarpSize)},
      .shared_bytes = static_cast<size_t>(plan.shared_bytes),
      .stream = launch.stream};
  if (plan.tile_n == 8) return gpu::Launch(SkinnyKernel<kForm, 8>, config, args);
  return gpu::Launch(SkinnyKernel<kForm, 16>, config, args);
}

}  // namespace nibble::kernels::cuda
