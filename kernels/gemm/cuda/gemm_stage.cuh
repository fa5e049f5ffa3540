// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The product of 16 channels with 8 tokens over one stage, whose order is part of what a float sum
// is.
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

#include <type_traits>

#include "base/cuda/reduce.cuh"
#include "kernels/device/ldmatrix.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/gemm/cuda/gemm_kernels.h"
#include "kernels/gemm/cuda/gemm_tile.cuh"
#include "kernels/gemm/cuda/int4_decode.cuh"

namespace nibble::kernels::cuda {

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

}  // namespace nibble::kernels::cuda
