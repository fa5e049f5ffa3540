// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// kTiled: 128 channels x kTileN tokens by four warps, each 32 channels of all tokens. README.md has
// the arithmetic.
//
// A ring of stages in shared memory, filled by cp.async:
//
//   stage: [4 warps][2 units] codes | [4 warps][2 units] scales, zero points | [kTileN] tokens
//
// and after the last stage the rows of A that the tokens are, -1 beyond the tile's: in registers
// they would take what sums need. PartTotals may follow.
// A warp's weights are copied and read by that warp alone; tokens are shared by all.
#pragma once

#include "base/cuda/async_copy.cuh"
#include "base/cuda/launch.h"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/gemm/cuda/gemm_stage.cuh"
#include "kernels/gemm/cuda/gemm_tile.cuh"
#include "kernels/gemm/cuda/tiled_sums.cuh"

namespace nibble::kernels::cuda {

template <Form kForm, int kTileN>
struct TiledStage {
  static constexpr int kScaleBytes = ScaleStageBytes(kForm) + ZeroStageBytes(kForm);
  static constexpr int kCodes = kTiledWarps * kUnits * UnitStageBytes(kForm);
  static constexpr int kScales = kTiledWarps * kUnits * kScaleBytes;
  static constexpr int kBytes = kCodes + kScales + kTileN * static_cast<int>(kStageBytes);
  static_assert(kBytes == TiledStageBytes(kForm, kTileN));

  uint8_t* data;
  __device__ uint8_t* Codes() const {
    return data + gpu::WarpId() * kUnits * UnitStageBytes(kForm);
  }
  __device__ uint8_t* Scales() const {
    return data + kCodes + gpu::WarpId() * kUnits * kScaleBytes;
  }
  __device__ uint8_t* Tokens() const { return data + kCodes + kScales; }
};

template <Form kForm, int kTileN>
__device__ __forceinline__ void CopyTiledStage(const GemmKernelArgs& args, const BlockWork& work,
                                               const int* rows, int unit, int stage,
                                               const TiledStage<kForm, kTileN>& to) {
  const int lane = gpu::LaneId();
  const auto thread = static_cast<int>(threadIdx.x);
  if (unit < args.num_units) {
    if constexpr (IsHalf(kForm)) {
      // [32 channels] rows of 128 bytes.
#pragma unroll
      for (int i = 0; i < kWarpChannels * kPieces / gpu::kWarpSize; ++i) {
        const int row = i * (gpu::kWarpSize / kPieces) + lane / kPieces;
        const int64_t channel = unit * kUnitChannels + row;
        gpu::CopyAsync16(to.Codes() + row * kStageBytes +
                             SwizzledPiece<kForm>(row, lane % kPieces) * kPieceBytes,
                         work.weight.codes + (channel * args.num_stages + stage) * kStageBytes +
                             lane % kPieces * kPieceBytes);
      }
    } else {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const uint8_t* const from =
            work.weight.codes +
            (int64_t{unit + u} * args.num_stages + stage) * UnitStageBytes(kForm);
#pragma unroll
        for (int i = 0; i < kRawPieces<kForm>; ++i) {
          const int at = i * static_cast<int>(kUnitBytes) + lane * kPieceBytes;
          gpu::CopyAsync16(to.Codes() + u * UnitStageBytes(kForm) + at, from + at);
        }
      }
      CopyScales<kForm, kUnits>(args, work.weight, to.Scales(), unit, stage);
    }
  }
  const int piece = thread % kPieces;
#pragma unroll
  for (int i = 0; i < kTileN * kPieces / kTiledThreads; ++i) {
    const int row = i * (kTiledThreads / kPieces) + thread / kPieces;
    const int from = rows[row];
    if (from < 0) continue;
    CopyTokenPiece<kForm>(
        args, to.Tokens() + row * kStageBytes + SwizzledPiece<kForm>(row, piece) * kPieceBytes,
        from, stage * kStageBytes + piece * kPieceBytes);
  }
}

template <Form kForm, int kTileN>
__device__ __forceinline__ void MultiplyTiledStage(const GemmKernelArgs& args,
                                                   const BlockWork& work,
                                                   const TiledStage<kForm, kTileN>& stage,
                                                   const int (&offset)[kUnits][2],
                                                   TiledSums<kForm, kTileN>& sums) {
  constexpr int kHalfPieces = kRawPieces<kForm> / 2;
  const int lane = gpu::LaneId();
  const auto pieces = [&](int unit, int half, uint4(&to)[kHalfPieces]) {
    const uint8_t* const codes = stage.Codes() + unit * UnitStageBytes(kForm);
#pragma unroll
    for (int i = 0; i < kHalfPieces; ++i) {
      int at;
      if constexpr (IsHalf(kForm)) {
        const int row = i * 8 + lane / 4;
        at = row * static_cast<int>(kStageBytes) +
             SwizzledPiece<kForm>(row, half * 4 + lane % 4) * kPieceBytes;
      } else {
        at = (half * kHalfPieces + i) * static_cast<int>(kUnitBytes) + lane * kPieceBytes;
      }
      to[i] = *reinterpret_cast<const uint4*>(codes + at);
    }
  };
  MultiplyStage<kForm>(args, work.weight.zeros != nullptr, pieces, stage.Scales(), offset,
                       stage.Tokens(), sums);
}

// Blocks that share a multiprocessor, for the registers they may take.
constexpr int TiledMinBlocks(Form form, int tile_n) {
  return tile_n < 128 && (form == Form::kFolded || form == Form::kInt8) ? 3 : 2;
}

template <Form kForm, int kTileN>
__global__ __launch_bounds__(kTiledThreads,
                             TiledMinBlocks(kForm,
                                            kTileN)) void TiledKernel(const GemmKernelArgs args) {
  constexpr int kStages = TiledStages(kForm, kTileN);
  using Stage = TiledStage<kForm, kTileN>;
  BlockWork work;
  if (!FindWork<kTileN>(args, &work)) return;
  const int unit = (work.channel_tile * kTiledWarps + gpu::WarpId()) * kUnits;
  const int parts = args.k_parts / args.split_k;
  const auto first_part = static_cast<int>(blockIdx.y) * parts;
  const int begin = PartBegin(args, first_part);
  const int end = PartBegin(args, first_part + parts);

  auto* const shared = gpu::SharedAs<uint8_t>();
  auto* const rows = reinterpret_cast<int*>(shared + kStages * Stage::kBytes);
  for (auto i = static_cast<int>(threadIdx.x); i < kTileN; i += kTiledThreads) {
    rows[i] = work.row_begin + i < work.row_end ? RowOfA(args, work.row_begin + i) : -1;
  }
  __syncthreads();
  int offset[kUnits][2] = {};
  LoadOffsets<kForm>(args, work.weight, unit, offset);

  const auto slot = [&](int stage) {
    return Stage{shared + (stage - begin) % kStages * Stage::kBytes};
  };
  const auto copy = [&](int stage) {
    if (stage < end) CopyTiledStage<kForm, kTileN>(args, work, rows, unit, stage, slot(stage));
    gpu::CopyAsyncCommit();
  };
  TiledSums<kForm, kTileN> sums = {};
  PartTotals<kForm, kTileN> totals(rows + kTileN);
  int part = first_part;
  for (int stage = begin; stage < begin + kStages - 1; ++stage) copy(stage);
  for (int stage = begin; stage < end; ++stage) {
    gpu::CopyAsyncWait<kStages - 2>();
    __syncthreads();  // the stage is there, and all are done with the one before it
    copy(stage + kStages - 1);
    if (unit < args.num_units) {
      MultiplyTiledStage<kForm, kTileN>(args, work, slot(stage), offset, sums);
    }
    if (stage + 1 == PartBegin(args, part + 1)) {
      totals.Add(&sums);
      ++part;
    }
  }
  totals.Finish(&sums);
  gpu::CopyAsyncWait<0>();
  __syncthreads();
  if (unit < args.num_units) StoreTile<kForm, kTileN>(args, work, unit, sums);
}

template <Form kForm>
absl::Status LaunchTiled(const GemmLaunch& launch) {
  const GemmPlan& plan = launch.plan;
  const GemmKernelArgs& args = launch.args;
  const int channel_tiles = (args.n + kTiledChannels - 1) / kTiledChannels;
  const gpu::LaunchConfig config = {
      .grid = {static_cast<unsigned>(channel_tiles) * static_cast<unsigned>(args.token_tiles),
               static_cast<unsigned>(args.split_k)},
      .block = {kTiledThreads},
      .shared_bytes = static_cast<size_t>(plan.shared_bytes),
      .stream = launch.stream};
  if (plan.tile_n == 32) {
    NIBBLE_RETURN_IF_ERROR(gpu::Launch(TiledKernel<kForm, 32>, config, args));
  } else if (plan.tile_n == 64) {
    NIBBLE_RETURN_IF_ERROR(gpu::Launch(TiledKernel<kForm, 64>, config, args));
  } else if constexpr (kForm == Form::kFolded || kForm == Form::kInt8) {
    NIBBLE_RETURN_IF_ERROR(gpu::Launch(TiledKernel<kForm, 128>, config, args));
  }
  if (args.split_k == 1) return absl::OkStatus();
  const int64_t threads =
      int64_t{args.rows} * args.num_units * (kUnitChannels / int64_t{kElements});
  return gpu::Launch(ReduceKernel<kForm>,
                     {.grid = {static_cast<unsigned>((threads + 127) / 128)},
                      .block = {128},
                      .stream = launch.stream},
                     args);
}

}  // namespace nibble::kernels::cuda
