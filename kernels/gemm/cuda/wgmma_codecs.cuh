// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The four forms of integer weights in the wgmma kernel: how a warp's 16 channels x 128 k of a
// stage become registers of the instruction, and what happens to the sums at the end of a group.
//
// Lane 4g + t has channels g and g + 8 of its unit: scales of both lie side by side.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/gemm/cuda/gemm_kernels.h"
#include "kernels/gemm/cuda/int4_decode.cuh"

namespace nibble::kernels::cuda {

// What a warp has of a stage in shared memory.
struct WgmmaUnit {
  const uint8_t* codes;   // [1024 or 2048]
  const uint8_t* scales;  // [groups of the stage, 8, 2]
  const uint8_t* zeros;   // the same
};

// Registers of the first operand of a stage: [instructions][registers].
using WgmmaWeights = uint32_t[4][4];

// kGroups (1, 2 or 4, of a stage) is a constant, as there must be no branch between the decoding
// and the instructions that read its registers: the compiler would have each of them wait for the
// one before (its warning C7520). decoder(group, pair) is asked for both channels of a lane, `pair`
// their bytes of `table`.
template <bool kFolded, int kGroups, typename Decoder>
__device__ __forceinline__ void DecodeInt4(const uint8_t* codes, const uint8_t* table, int lane,
                                           const Decoder& decoder, WgmmaWeights& a) {
  const auto* const pairs = reinterpret_cast<const uint16_t*>(table) + lane / 4;
  Int4Decode decode[2];
#pragma unroll
  for (int unit = 0; unit < 2; ++unit) {
    const uint4 four = *reinterpret_cast<const uint4*>(codes + unit * kUnitBytes + lane * 16);
    const uint32_t words[2][2] = {{four.x, four.y}, {four.z, four.w}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int step = unit * 2 + i;
      if (step % (4 / kGroups) == 0) {
        const uint32_t pair = pairs[step / (4 / kGroups) * 8];
        decode[0] = decoder(pair & 0xFFU);
        decode[1] = decoder(pair >> 8);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        a[step][r] = DecodeLow<kFolded>(words[i][r], decode[r]);
        a[step][2 + r] = DecodeHigh<kFolded>(words[i][r], decode[r]);
      }
    }
  }
}

// S by group is multiplied in while unpacking, and one set of sums takes all of k.
struct WgmmaFolded {
  static constexpr Form kForm = Form::kFolded;
  using Sum = int;
  template <int kGroups>
  static __device__ __forceinline__ void Decode(const WgmmaUnit& unit, int lane, WgmmaWeights& a) {
    DecodeInt4<true, kGroups>(
        unit.codes, unit.scales, lane,
        [](uint32_t scale) { return FoldedDecode(static_cast<int8_t>(scale)); }, a);
  }
};

// For the forms that scale the sums of a group.
template <int kGroups>
__device__ __forceinline__ void DecodeExact(const WgmmaUnit& unit, int lane, WgmmaWeights& a) {
  DecodeInt4<false, kGroups>(
      unit.codes, unit.zeros, lane, [](uint32_t zero) { return ExactDecode(zero); }, a);
}

// Sums of a group times S, exactly.
struct WgmmaInteger {
  static constexpr Form kForm = Form::kInteger;
  using Sum = int;
  struct Scales {
    int s[2];
  };
  static constexpr int kStart = 0;  // of the sums of a group
  // S is the byte plus offsets[0 or 1].
  static __device__ __forceinline__ Scales LoadScales(const WgmmaUnit& unit, int lane, int group,
                                                      const int (&offsets)[2]) {
    const uint32_t pair = reinterpret_cast<const uint16_t*>(unit.scales)[group * 8 + lane / 4];
    return {
        {static_cast<int>(pair & 0xFFU) + offsets[0], static_cast<int>(pair >> 8) + offsets[1]}};
  }
  static __device__ __forceinline__ int Add(int sum, int group_sum, int scale) {
    return sum + group_sum * scale;
  }
  template <int kGroups>
  static __device__ __forceinline__ void Decode(const WgmmaUnit& unit, int lane, WgmmaWeights& a) {
    DecodeExact<kGroups>(unit, lane, a);
  }
};

// Sums of a group, or of a stage of a longer one, times a float. They start from the bits of
// 1.5 * 2^23, so that read as a float they are that plus the sum: exact, as |sum| <= 127 * 15 * 128
// < 2^22, and cheaper than a conversion, of which a multiprocessor does 16 a cycle.
struct WgmmaFloatScales {
  static constexpr Form kForm = Form::kFloatScales;
  using Sum = float;
  struct Scales {
    float s[2];
  };
  static constexpr int kStart = 0x4B400000;
  static __device__ __forceinline__ Scales LoadScales(const WgmmaUnit& unit, int lane, int group,
                                                      const int (&)[2]) {
    const float2 pair = reinterpret_cast<const float2*>(unit.scales)[group * 8 + lane / 4];
    return {{pair.x, pair.y}};
  }
  static __device__ __forceinline__ float Add(float sum, int group_sum, float scale) {
    return fmaf(__int_as_float(group_sum) - 12582912.0F, scale, sum);
  }
  template <int kGroups>
  static __device__ __forceinline__ void Decode(const WgmmaUnit& unit, int lane, WgmmaWeights& a) {
    DecodeExact<kGroups>(unit, lane, a);
  }
};

// Codes are registers as they lie.
struct WgmmaInt8 {
  static constexpr Form kForm = Form::kInt8;
  using Sum = int;
  template <int kGroups>
  static __device__ __forceinline__ void Decode(const WgmmaUnit& unit, int lane, WgmmaWeights& a) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint4 words =
          *reinterpret_cast<const uint4*>(unit.codes + step * kUnitBytes + lane * 16);
      a[step][0] = words.x;
      a[step][1] = words.y;
      a[step][2] = words.z;
      a[step][3] = words.w;
    }
  }
};

}  // namespace nibble::kernels::cuda
