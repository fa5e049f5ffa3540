// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What kSkinny and kTiled share: which rows and channels a block has, copies of activations and
// scales into shared memory, and the product of 16 channels with 8 tokens over one stage, whose
// order is part of what a float sum is.
//
// A stage is 128 bytes of a row of activations: 128 k of int8 or 64 of 16 bits, four matrix
// instructions. In registers, with g = lane / 4 and t = lane % 4:
//
//   raw         the lane's 16-byte pieces of 16 channels, as weights lie in memory
//   a[h][s]     the first operand of instruction s of half h; b[h][s] the second one, of 8 tokens
//
// For 16-bit weights lane t takes k = 8t .. 8t + 7 of each 32, of both operands (4 of them in each
// of two instructions): one 16-byte load then feeds two instructions, from device memory as well
// as from shared memory.
#pragma once

#include "base/cuda/async_copy.cuh"
#include "base/cuda/memory.cuh"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "kernels/device/elements.cuh"
#include "kernels/device/ldmatrix.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/gemm/cuda/gemm_kernels.h"
#include "kernels/gemm/cuda/int4_decode.cuh"
#include "kernels/gemm/cuda/store_one.cuh"

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

// ---- Operands ----

// Scales of channels g and g + 8 for the groups of a stage, where sums are scaled by group.
template <Form kForm, int kGroups>
struct GroupScales {
  Sum<kForm> low[kGroups];
  Sum<kForm> high[kGroups];
};

// `offset` is added to the bytes of the integer form: of channel g, and of g + 8.
template <Form kForm, int kGroups>
__device__ __forceinline__ void ReadScales(const uint8_t* scales, const int (&offset)[2],
                                           GroupScales<kForm, kGroups>* result) {
  const int g = gpu::LaneId() / 4;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    if constexpr (kForm == Form::kFloatScales) {
      const float2 pair = reinterpret_cast<const float2*>(scales)[i * 8 + g];
      result->low[i] = pair.x;
      result->high[i] = pair.y;
    } else {
      const uint32_t pair = reinterpret_cast<const uint16_t*>(scales)[i * 8 + g];
      result->low[i] = static_cast<int>(pair & 0xFFU) + offset[0];
      result->high[i] = static_cast<int>(pair >> 8) + offset[1];
    }
  }
}

// What decodes channels g and g + 8 in group i of the stage.
template <Form kForm>
__device__ __forceinline__ void ReadDecodes(const uint8_t* scales, bool has_zeros, int i,
                                            Int4Decode (&decode)[2]) {
  const int g = gpu::LaneId() / 4;
  if constexpr (kForm == Form::kFolded) {
    const uint32_t pair = reinterpret_cast<const uint16_t*>(scales)[i * 8 + g];
    decode[0] = FoldedDecode(static_cast<int8_t>(pair & 0xFFU));
    decode[1] = FoldedDecode(static_cast<int8_t>(pair >> 8));
  } else {
    uint32_t pair = 0x0808U;
    if (has_zeros) {
      pair = reinterpret_cast<const uint16_t*>(scales + ScaleStageBytes(kForm))[i * 8 + g];
    }
    decode[0] = ExactDecode(pair & 0xFFU);
    decode[1] = ExactDecode(pair >> 8);
  }
}

// From raw pieces to the first operands of one half of a stage. kGroups: of the stage, 1, 2 or 4.
template <Form kForm, int kGroups>
__device__ __forceinline__ void DecodeHalf(const uint4 (&raw)[kRawPieces<kForm> / 2], int half,
                                           const uint8_t* scales, bool has_zeros,
                                           uint32_t (&a)[kHalfSteps][4]) {
  if constexpr (IsInt4(kForm)) {
    constexpr bool kFolded = kForm == Form::kFolded;
    const uint32_t words[4] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w};
    Int4Decode decode[2];
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
      if (s == 0 || kGroups == 4) {
        ReadDecodes<kForm>(scales, has_zeros, (half * kHalfSteps + s) * kGroups / kSteps, decode);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[s][i] = DecodeLow<kFolded>(words[2 * s + i], decode[i]);
        a[s][2 + i] = DecodeHigh<kFolded>(words[2 * s + i], decode[i]);
      }
    }
  } else {
    const uint32_t words[2][4] = {{raw[0].x, raw[0].y, raw[0].z, raw[0].w},
                                  {raw[1].x, raw[1].y, raw[1].z, raw[1].w}};
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // 16 bits: a piece is of one channel and both instructions.
        a[s][i] = IsHalf(kForm) ? words[i % 2][2 * s + i / 2] : words[s][i];
      }
    }
  }
}

// The second operands of 8 tokens for one half of a stage; `tokens` is where their rows begin.
template <Form kForm>
__device__ __forceinline__ void LoadTokens(const uint8_t* tokens, int half,
                                           uint32_t (&b)[kHalfSteps][2]) {
  const int lane = gpu::LaneId();
  uint32_t r[4];
  if constexpr (IsHalf(kForm)) {
    const int row = lane / 4;
    const int piece = SwizzledPiece<kForm>(row, half * 4 + lane % 4);
    const uint4 words =
        *reinterpret_cast<const uint4*>(tokens + row * kStageBytes + piece * kPieceBytes);
    r[0] = words.x;
    r[1] = words.y;
    r[2] = words.z;
    r[3] = words.w;
  } else {
    const int row = lane % 8;
    const int piece = SwizzledPiece<kForm>(row, half * 4 + lane / 8);
    LoadMatrixX4(r, tokens + row * kStageBytes + piece * kPieceBytes);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = r[i];
}

// ---- The product of a stage ----

template <Form kForm, typename T>
__device__ __forceinline__ void MultiplyStep(T (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  if constexpr (kForm == Form::kBf16) {
    MmaBf16(sum, a, b);
  } else if constexpr (kForm == Form::kF16) {
    MmaF16(sum, a, b);
  } else {
    MmaS8(sum, a, b);
  }
}

// sum += 16 channels times 8 tokens over half a stage, of a form whose sums are not scaled.
template <Form kForm>
__device__ __forceinline__ void MultiplyHalf(Sum<kForm> (&sum)[4],
                                             const uint32_t (&a)[kHalfSteps][4],
                                             const uint32_t (&b)[kHalfSteps][2]) {
#pragma unroll
  for (int s = 0; s < kHalfSteps; ++s) MultiplyStep<kForm>(sum, a[s], b[s]);
}

// The same over a stage for the forms that scale sums, which they do group by group: it takes no
// second set of sums.
template <Form kForm, int kGroups>
__device__ __forceinline__ void MultiplyGroups(Sum<kForm> (&sum)[4],
                                               const uint32_t (&a)[2][kHalfSteps][4],
                                               const uint32_t (&b)[2][kHalfSteps][2],
                                               const GroupScales<kForm, kGroups>& scales) {
  constexpr int kGroupSteps = kSteps / kGroups;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    int partial[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kGroupSteps; ++i) {
      const int s = group * kGroupSteps + i;
      MmaS8(partial, a[s / kHalfSteps][s % kHalfSteps], b[s / kHalfSteps][s % kHalfSteps]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Sum<kForm> scale = i < 2 ? scales.low[group] : scales.high[group];
      if constexpr (kForm == Form::kInteger) {
        sum[i] += partial[i] * scale;
      } else {
        sum[i] = fmaf(__int2float_rn(partial[i]), scale, sum[i]);
      }
    }
  }
}

// Calls body(std::integral_constant<int, groups of a stage>): 1, 2 or 4 scales of a channel.
template <Form kForm, typename Body>
__device__ __forceinline__ void ForGroups(const GemmKernelArgs& args, const Body& body) {
  if constexpr (IsInt4(kForm)) {
    if (args.group_shift == 5) return body(std::integral_constant<int, 4>());
    if (args.group_shift == 6) return body(std::integral_constant<int, 2>());
  }
  return body(std::integral_constant<int, 1>());
}

// sums += kUnits * 16 channels times kTiles * 8 tokens over one stage. raw(u, h, pieces) gives the
// pieces of a unit's half; scales of a unit are kScaleBytes after those of the one before.
template <Form kForm, int kUnits, int kTiles, typename Raw>
__device__ __forceinline__ void MultiplyStage(const GemmKernelArgs& args, bool has_zeros,
                                              const Raw& raw, const uint8_t* scales,
                                              const int (&offset)[kUnits][2], const uint8_t* tokens,
                                              Sum<kForm> (&sums)[kUnits][kTiles][4]) {
  constexpr int kScaleBytes = ScaleStageBytes(kForm) + ZeroStageBytes(kForm);
  constexpr int kTileBytes = kTileTokens * static_cast<int>(kStageBytes);
  if constexpr (kScalesSums<kForm>) {
    // Units that share the loads of tokens. Float scales leave no registers for two.
    constexpr int kTogether = kForm == Form::kFloatScales ? 1 : kUnits;
    ForGroups<kForm>(args, [&](auto groups) {
      constexpr int kGroups = decltype(groups)::value;
#pragma unroll
      for (int first = 0; first < kUnits; first += kTogether) {
        uint32_t a[kTogether][2][kHalfSteps][4];
        GroupScales<kForm, kGroups> group_scales[kTogether];
#pragma unroll
        for (int u = 0; u < kTogether; ++u) {
          const uint8_t* const unit_scales = scales + (first + u) * kScaleBytes;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint4 pieces[kRawPieces<kForm> / 2];
            raw(first + u, half, pieces);
            DecodeHalf<kForm, kGroups>(pieces, half, unit_scales, has_zeros, a[u][half]);
          }
          ReadScales(unit_scales, offset[first + u], &group_scales[u]);
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          uint32_t b[2][kHalfSteps][2];
          LoadTokens<kForm>(tokens + tile * kTileBytes, 0, b[0]);
          LoadTokens<kForm>(tokens + tile * kTileBytes, 1, b[1]);
#pragma unroll
          for (int u = 0; u < kTogether; ++u) {
            MultiplyGroups<kForm, kGroups>(sums[first + u][tile], a[u], b, group_scales[u]);
          }
        }
      }
    });
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[kUnits][kHalfSteps][4];
      ForGroups<kForm>(args, [&](auto groups) {
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          uint4 pieces[kRawPieces<kForm> / 2];
          raw(u, half, pieces);
          DecodeHalf<kForm, decltype(groups)::value>(pieces, half, scales + u * kScaleBytes,
                                                     has_zeros, a[u]);
        }
      });
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        uint32_t b[kHalfSteps][2];
        LoadTokens<kForm>(tokens + tile * kTileBytes, half, b);
#pragma unroll
        for (int u = 0; u < kUnits; ++u) MultiplyHalf<kForm>(sums[u][tile], a[u], b);
      }
    }
  }
}

// Of the integer form, for channels g and g + 8 of each unit: what is added to the bytes of S.
template <Form kForm, int kUnits>
__device__ __forceinline__ void LoadOffsets(const GemmKernelArgs& args,
                                            const GroupedWeights::Entry& weight, int unit,
                                            int (&offset)[kUnits][2]) {
  if constexpr (kForm == Form::kInteger) {
    if (unit >= args.num_units) return;
    const auto* const offsets = reinterpret_cast<const int*>(weight.scales + args.integer_offset) +
                                unit * kUnitChannels + gpu::LaneId() / 4;
#pragma unroll
    for (int i = 0; i < 2 * kUnits; ++i) offset[i / 2][i % 2] = offsets[i * 8];
  }
}

// ---- The end ----

// What a channel's sums are multiplied by; 1 is not used.
template <Form kForm>
__device__ __forceinline__ float ChannelScale(const GemmKernelArgs& args,
                                              const GroupedWeights::Entry& weight, int channel) {
  if constexpr (SumsAreExact(kForm)) {
    return reinterpret_cast<const float*>(weight.scales + args.channel_offset)[channel];
  }
  return 1.0F;
}
template <Form kForm>
__device__ __forceinline__ float TokenScale(const GemmKernelArgs& args, int row) {
  if constexpr (IsHalf(kForm)) return 1.0F;
  return args.a_scales[RowOfA(args, row)];
}

// kernels/gemm/README.md, order of the epilogue.
template <Form kForm>
__device__ __forceinline__ float FinishSum(Sum<kForm> sum, float token_scale, float channel_scale) {
  if constexpr (SumsAreExact(kForm)) {
    return __int2float_rn(sum) * (token_scale * channel_scale);
  } else if constexpr (kForm == Form::kFloatScales) {
    return sum * token_scale;
  } else {
    return sum;
  }
}

// Eight sums of one row of D from `channel` (a multiple of 8) on.
template <Form kForm>
__device__ __forceinline__ void StoreOutputs(const GemmKernelArgs& args,
                                             const GroupedWeights::Entry& weight, int row,
                                             int channel, const Sum<kForm> (&sums)[kElements]) {
  const float token_scale = TokenScale<kForm>(args, row);
  Float8 y;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const bool inside = channel + i < args.n;
    y.v[i] = FinishSum<kForm>(sums[i], token_scale,
                              inside ? ChannelScale<kForm>(args, weight, channel + i) : 0.0F);
    if (args.bias != nullptr && inside) y.v[i] += args.bias[channel + i];
  }
  const int64_t index = row * args.d.stride + channel;
  if (channel + kElements <= args.n) {
    Store8(args.d, index, y);
    return;
  }
  for (int i = 0; i < kElements && channel + i < args.n; ++i) StoreOne(args.d, index + i, y.v[i]);
}

}  // namespace nibble::kernels::cuda
