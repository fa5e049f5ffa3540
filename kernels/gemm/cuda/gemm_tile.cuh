// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What kSkinny and kTiled share: which rows and channels a block has, and copies of activations and
// scales into shared memory. The product of a stage is in gemm_stage.cuh, the end in
// gemm_epilogue.cuh.
#pragma once

#include "base/cuda/async_copy.cuh"
#include "base/cuda/reduce.cuh"
#include "kernels/gemm/cuda/gemm_kernels.h"

namespace nibble::kernels::cuda {

constexpr int kSteps = 4;  // matrix instructions of a stage
constexpr int kHalfSteps = 2;
constexpr int kTileTokens = 8;   // of an instruction
constexpr int kPieceBytes = 16;  // of a copy
constexpr int kPieces = static_cast<int>(kStageBytes) / kPieceBytes;

template <Form kForm>
constexpr int kRawPieces = UnitStageBytes(kForm) / static_cast<int>(kUnitBytes);

template <bool kExact>
struct SumOf {
  using Type = int;
};
template <>
struct SumOf<false> {
  using Type = float;
};
template <Form kForm>
constexpr bool kScalesSums = kForm == Form::kInteger || kForm == Form::kFloatScales;
template <Form kForm>
using Sum = typename SumOf<SumsAreExact(kForm)>::Type;

// ---- Which rows and channels a block has ----

struct BlockWork {
  GroupedWeights::Entry weight;
  int channel_tile;
  int row_begin;  // of D
  int row_end;
};

// The rows of tile `slot`, counting the tiles of all groups. Every warp finds it for itself.
template <int kTileN>
__device__ __forceinline__ bool FindGroup(const GemmKernelArgs& args, int slot, BlockWork* work) {
  const int lane = gpu::LaneId();
  for (int base = 0; base < args.num_groups; base += gpu::kWarpSize) {
    int first = 0;
    int last = 0;
    if (base + lane < args.num_groups) {
      first = min(max(args.offsets[base + lane], 0), args.rows);
      last = min(max(args.offsets[base + lane + 1], first), args.rows);
    }
    const int tiles = (last - first + kTileN - 1) / kTileN;
    const int sum = gpu::WarpScan(tiles);  // of lanes up to this one
    const unsigned reached = __ballot_sync(gpu::kFullMask, sum > slot);
    if (reached != 0) {
      const int owner = __ffs(static_cast<int>(reached)) - 1;
      const int within = slot - __shfl_sync(gpu::kFullMask, sum - tiles, owner);
      work->weight = args.entries[base + owner];
      work->row_begin = __shfl_sync(gpu::kFullMask, first, owner) + within * kTileN;
      work->row_end = min(work->row_begin + kTileN, __shfl_sync(gpu::kFullMask, last, owner));
      return true;
    }
    slot -= __shfl_sync(gpu::kFullMask, sum, gpu::kWarpSize - 1);
  }
  return false;
}

// False for a block without rows. Tiles of tokens that read the same weights follow each other.
template <int kTileN>
__device__ __forceinline__ bool FindWork(const GemmKernelArgs& args, BlockWork* work) {
  const auto block = static_cast<int>(blockIdx.x);
  const int slot = block % args.token_tiles;
  work->channel_tile = block / args.token_tiles;
  if (args.entries != nullptr) return FindGroup<kTileN>(args, slot, work);
  work->weight = args.weight;
  work->row_begin = slot * kTileN;
  work->row_end = min(work->row_begin + kTileN, args.rows);
  return true;
}

// The row of A (and of its scales) that row `row` of D reads.
__device__ __forceinline__ int RowOfA(const GemmKernelArgs& args, int row) {
  return args.a_rows == nullptr ? row : args.a_rows[row];
}

// ---- Copies into shared memory ----

// Where piece `piece` of a token's 128 bytes lies in them: without conflicts for ldmatrix (8 rows,
// one piece) or, with 16-bit elements, for 8 lanes with two rows and four pieces.
template <Form kForm>
__device__ __forceinline__ int SwizzledPiece(int row, int piece) {
  return IsHalf(kForm) ? piece ^ ((row & 1) << 2) : piece ^ (row & 7);
}

// One piece of a row of A. Beyond k: zeros for 16-bit elements (what lies there may be no number);
// int8 meets weights of 0 there.
template <Form kForm>
__device__ __forceinline__ void CopyTokenPiece(const GemmKernelArgs& args, uint8_t* to, int row,
                                               int64_t offset) {
  const uint8_t* const from = args.a + row * args.a_stride_bytes;
  if (offset >= args.a_row_bytes) {
    gpu::CopyAsync16(to, args.a, /*fill_zero=*/true);
  } else if (IsHalf(kForm) && offset + kPieceBytes > args.a_row_bytes) {
    for (int i = 0; i < kPieceBytes / 2; ++i) {
      const int64_t at = offset + 2 * i;
      reinterpret_cast<uint16_t*>(to)[i] =
          at < args.a_row_bytes ? *reinterpret_cast<const uint16_t*>(from + at) : uint16_t{0};
    }
  } else {
    gpu::CopyAsync16(to, from + offset);
  }
}

// Group scales and zero points of `kUnits` units and one stage, by one warp:
//   [kUnits][ScaleStageBytes + ZeroStageBytes]
template <Form kForm, int kUnits>
__device__ __forceinline__ void CopyScales(const GemmKernelArgs& args,
                                           const GroupedWeights::Entry& weight, uint8_t* to,
                                           int unit, int stage) {
  if constexpr (IsInt4(kForm)) {
    constexpr int kGroupBytes = kForm == Form::kFloatScales ? 64 : 16;
    constexpr int kBytes = ScaleStageBytes(kForm) + ZeroStageBytes(kForm);
    const int lane = gpu::LaneId();
    // 1, 2 or 4 groups in a stage; pieces of a unit.
    const int groups_shift = args.group_shift >= 7 ? 0 : 7 - args.group_shift;
    const int pieces_shift = groups_shift + (kForm == Form::kFloatScales ? 2 : 0);
    const int group = stage * static_cast<int>(kIntegerStageK) >> args.group_shift;
    if (lane < kUnits << pieces_shift) {  // 32 at most
      const int64_t index = int64_t{unit + (lane >> pieces_shift)} * args.num_scale_groups + group;
      const int piece = (lane & ((1 << pieces_shift) - 1)) * kPieceBytes;
      gpu::CopyAsync16(to + (lane >> pieces_shift) * kBytes + piece,
                       weight.scales + index * kGroupBytes + piece);
    }
    if (ZeroStageBytes(kForm) > 0 && weight.zeros != nullptr && lane < kUnits << groups_shift) {
      const int64_t index = int64_t{unit + (lane >> groups_shift)} * args.num_scale_groups + group;
      const int piece = (lane & ((1 << groups_shift) - 1)) * kPieceBytes;
      gpu::CopyAsync16(to + (lane >> groups_shift) * kBytes + ScaleStageBytes(kForm) + piece,
                       weight.zeros + index * kPieceBytes + piece);
    }
  }
}

}  // namespace nibble::kernels::cuda
