// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// kTiled: 128 channels x kTileN tokens by four warps, each 32 channels of all tokens. README.md has
// the arithmetic.
//
// A ring of stages in shared memory, filled by cp.async:
//
//   stage: [4 warps][2 units] codes | [4 warps][2 units] scales, zero points | [kTileN] tokens
//
// A warp's weights are copied and read by that warp alone; tokens are shared by all.
#pragma once

#include "kernels/gemm/cuda/gemm_tile.cuh"

namespace nibble::kernels::cuda {

constexpr int kUnits = kTiledUnitsPerWarp;
constexpr int kWarpChannels = kUnits * static_cast<int>(kUnitChannels);
constexpr int kTiledWarps = kTiledThreads / gpu::kWarpSize;

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

// The rows of A that a thread copies pieces of: all of one column of pieces. -1: none.
template <int kTileN>
using TokenRows = int[kTileN * kPieces / kTiledThreads];

template <Form kForm, int kTileN>
__device__ __forceinline__ void CopyTiledStage(const GemmKernelArgs& args, const BlockWork& work,
                                               const TokenRows<kTileN>& rows, int unit, int stage,
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
    if (rows[i] < 0) continue;
    CopyTokenPiece<kForm>(
        args, to.Tokens() + row * kStageBytes + SwizzledPiece<kForm>(row, piece) * kPieceBytes,
        rows[i], stage * kStageBytes + piece * kPieceBytes);
  }
}

template <Form kForm, int kTileN>
__device__ __forceinline__ void ReadRaw(const TiledStage<kForm, kTileN>& stage, int unit,
                                        uint4 (&raw)[kRawPieces<kForm>]) {
  const int lane = gpu::LaneId();
  const uint8_t* const codes = stage.Codes() + unit * UnitStageBytes(kForm);
#pragma unroll
  for (int i = 0; i < kRawPieces<kForm>; ++i) {
    int at;
    if constexpr (IsHalf(kForm)) {
      const int row = i % 2 * 8 + lane / 4;
      at = row * static_cast<int>(kStageBytes) +
           SwizzledPiece<kForm>(row, i / 2 * 4 + lane % 4) * kPieceBytes;
    } else {
      at = i * static_cast<int>(kUnitBytes) + lane * kPieceBytes;
    }
    raw[i] = *reinterpret_cast<const uint4*>(codes + at);
  }
}

template <Form kForm, int kTileN>
using TiledSums = Sum<kForm>[kUnits][kTileN / kTileTokens][4];

template <Form kForm, int kTileN, int kGroups>
__device__ __forceinline__ void MultiplyTiledStage(const BlockWork& work,
                                                   const TiledStage<kForm, kTileN>& stage,
                                                   const int (&offset)[kUnits][2],
                                                   TiledSums<kForm, kTileN>& sums) {
  constexpr int kScales = TiledStage<kForm, kTileN>::kScaleBytes;
  uint32_t a[kUnits][kSteps][4];
  GroupScales<kForm, kGroups> scales[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    uint4 raw[kRawPieces<kForm>];
    ReadRaw<kForm, kTileN>(stage, u, raw);
    DecodeStage<kForm, kGroups>(raw, stage.Scales() + u * kScales, work.weight.zeros != nullptr,
                                a[u]);
    if constexpr (kForm == Form::kInteger || kForm == Form::kFloatScales) {
      ReadScales(stage.Scales() + u * kScales, offset[u], &scales[u]);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTileN / kTileTokens; ++tile) {
    uint32_t b[kSteps][2];
    LoadTokens<kForm>(stage.Tokens() + tile * kTileTokens * kStageBytes, b);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      MultiplyStage<kForm, kGroups>(sums[u][tile], a[u], b, scales[u]);
    }
  }
}

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

template <Form kForm, int kTileN>
__global__ __launch_bounds__(kTiledThreads, 2) void TiledKernel(const GemmKernelArgs args) {
  constexpr int kStages = TiledStages(kForm, kTileN);
  using Stage = TiledStage<kForm, kTileN>;
  BlockWork work;
  if (!FindWork<kTileN>(args, &work)) return;
  const int unit = (work.channel_tile * kTiledWarps + gpu::WarpId()) * kUnits;
  const int parts = args.k_parts / args.split_k;
  const auto first_part = static_cast<int>(blockIdx.y) * parts;
  const int begin = PartBegin(args.num_stages, args.k_parts, first_part);
  const int end = PartBegin(args.num_stages, args.k_parts, first_part + parts);

  TokenRows<kTileN> rows;
#pragma unroll
  for (int i = 0; i < kTileN * kPieces / kTiledThreads; ++i) {
    const int row =
        work.row_begin + i * (kTiledThreads / kPieces) + static_cast<int>(threadIdx.x) / kPieces;
    rows[i] = row < work.row_end ? RowOfA(args, row) : -1;
  }
  int offset[kUnits][2] = {};
  if constexpr (kForm == Form::kInteger) {
    if (unit < args.num_units) {
      const auto* const offsets =
          reinterpret_cast<const int*>(work.weight.scales + args.integer_offset) +
          unit * kUnitChannels + gpu::LaneId() / 4;
#pragma unroll
      for (int i = 0; i < 2 * kUnits; ++i) offset[i / 2][i % 2] = offsets[i * 8];
    }
  }

  auto* const shared = gpu::SharedAs<uint8_t>();
  const auto slot = [&](int stage) {
    return Stage{shared + (stage - begin) % kStages * Stage::kBytes};
  };
  const auto copy = [&](int stage) {
    if (stage < end) CopyTiledStage<kForm, kTileN>(args, work, rows, unit, stage, slot(stage));
    gpu::CopyAsyncCommit();
  };
  TiledSums<kForm, kTileN> sums = {};
  TiledSums<kForm, kTileN> total = {};  // of whole parts, where their order matters
  int part = first_part;
  for (int stage = begin; stage < begin + kStages - 1; ++stage) copy(stage);
  for (int stage = begin; stage < end; ++stage) {
    gpu::CopyAsyncWait<kStages - 2>();
    __syncthreads();  // the stage is there, and all are done with the one before it
    copy(stage + kStages - 1);
    if (unit < args.num_units) {
      ForGroups<kForm>(args, [&](auto groups) {
        MultiplyTiledStage<kForm, kTileN, decltype(groups)::value>(work, slot(stage), offset, sums);
      });
    }
    if constexpr (!SumsAreExact(kForm)) {
      if (stage + 1 == PartBegin(args.num_stages, args.k_parts, part + 1)) {
        ++part;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
#pragma unroll
          for (int tile = 0; tile < kTileN / kTileTokens; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              total[u][tile][i] += sums[u][tile][i];
              sums[u][tile][i] = 0.0F;
            }
          }
        }
      }
    }
  }
  gpu::CopyAsyncWait<0>();
  __syncthreads();
  if (unit >= args.num_units) return;
  if constexpr (SumsAreExact(kForm)) {
    StoreTile<kForm, kTileN>(args, work, unit, sums);
  } else {
    StoreTile<kForm, kTileN>(args, work, unit, total);
  }
}

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
