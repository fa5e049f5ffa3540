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
using TiledSums = Sum<kForm>[kUnits][kTileN / kTileTokens][4];

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
