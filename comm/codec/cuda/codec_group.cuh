// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A group's codes, by a team of 1, 2 or 4 neighbouring lanes with 32 values each: a block of
// comm/codec/README.md is a thread's. Every operation is codec_ref.cc's, in its order. All 32 lanes
// of a warp call, whether or not they have a group.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/reduce.cuh"
#include "comm/codec/codec_kernels.h"
#include "comm/codec/codec_scale.h"
#include "comm/codec/cuda/codec_values.cuh"

namespace nibble::comm::cuda {

// Words that 32 codes of so many bits are: the planes' words, the wider plane first.
template <int kBits>
struct ThreadCode {
  uint32_t words[kBits];
  uint32_t scale = 0;
  uint32_t zero = 0;
  uint32_t spike_values = 0;   // two bf16: the least below, the greatest above
  uint32_t spike_indices = 0;  // two bytes
};

__device__ __forceinline__ int TeamSize(const GroupLayout& layout) {
  return layout.group_size / kThreadValues;
}
// Which of the group's blocks this thread has.
__device__ __forceinline__ int TeamPart(const GroupLayout& layout) {
  return gpu::LaneId() & (TeamSize(layout) - 1);
}

__device__ __forceinline__ float TeamMin(float value, int team) {
  for (int bits = 1; bits < team; bits *= 2) {
    value = fminf(value, __shfl_xor_sync(gpu::kFullMask, value, bits));
  }
  return value;
}
__device__ __forceinline__ float TeamMax(float value, int team) {
  for (int bits = 1; bits < team; bits *= 2) {
    value = fmaxf(value, __shfl_xor_sync(gpu::kFullMask, value, bits));
  }
  return value;
}
__device__ __forceinline__ bool TeamAll(bool value, int team) {
  const unsigned all = __ballot_sync(gpu::kFullMask, value ? 1 : 0);
  const unsigned mine = ((1U << team) - 1U) << (gpu::LaneId() & ~(team - 1));
  return (all & mine) == mine;
}

// The group's Hadamard transform, its own inverse.
__device__ __forceinline__ void Rotate(const GroupLayout& layout, float (&x)[kThreadValues]) {
  const float scale = RotationScale(layout.group_size);
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) x[i] *= scale;
#pragma unroll
  for (int distance = 1; distance < kThreadValues; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kThreadValues; ++i) {
      if ((i & distance) != 0) continue;
      const float sum = x[i] + x[i + distance];
      const float difference = x[i] - x[i + distance];
      x[i] = sum;
      x[i + distance] = difference;
    }
  }
  for (int bits = 1; bits < TeamSize(layout); bits *= 2) {
    const bool upper = (gpu::LaneId() & bits) != 0;
#pragma unroll
    for (int i = 0; i < kThreadValues; ++i) {
      const float other = __shfl_xor_sync(gpu::kFullMask, x[i], bits);
      x[i] = upper ? other - x[i] : x[i] + other;
    }
  }
}

// A value of the group and where it stands.
struct Extreme {
  float value;
  int index;
};

// The first least value, or with kGreatest the first greatest.
template <bool kGreatest>
__device__ __forceinline__ Extreme TeamExtreme(const GroupLayout& layout,
                                               const float (&x)[kThreadValues]) {
  Extreme best = {x[0], 0};
#pragma unroll
  for (int i = 1; i < kThreadValues; ++i) {
    const bool better = kGreatest ? best.value < x[i] : x[i] < best.value;
    if (better) best = {x[i], i};
  }
  best.index += TeamPart(layout) * kThreadValues;
  for (int bits = 1; bits < TeamSize(layout); bits *= 2) {
    const float value = __shfl_xor_sync(gpu::kFullMask, best.value, bits);
    const int index = __shfl_xor_sync(gpu::kFullMask, best.index, bits);
    const bool better = kGreatest ? best.value < value : value < best.value;
    const bool worse = kGreatest ? value < best.value : best.value < value;
    if (better || (!worse && index < best.index)) best = {value, index};
  }
  return best;
}

// x[index of the group] = value, by the thread that has it.
__device__ __forceinline__ void SetInTeam(const GroupLayout& layout, int index, float value,
                                          float (&x)[kThreadValues]) {
  const int own = index - TeamPart(layout) * kThreadValues;
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    if (i == own) x[i] = value;
  }
}

// Takes the spikes out of the values.
template <int kBits>
__device__ __forceinline__ void TakeSpikes(const GroupLayout& layout, float (&x)[kThreadValues],
                                           ThreadCode<kBits>* code) {
  const Extreme least = TeamExtreme<false>(layout, x);
  const Extreme greatest = TeamExtreme<true>(layout, x);
  code->spike_values = SpikeCode(least.value) | static_cast<uint32_t>(SpikeCode(greatest.value))
                                                    << 16;
  code->spike_indices = static_cast<uint32_t>(least.index | greatest.index << 8);
  SetInTeam(layout, least.index, 0.0F, x);
  SetInTeam(layout, greatest.index, 0.0F, x);
}

// One plane of `kWidth` bits, bits from_bit.. of the codes: value j is in byte j % (4 kWidth), the
// single bits' plane is a word.
template <int kWidth>
__device__ __forceinline__ void PackPlane(const uint32_t (&codes)[kThreadValues], int from_bit,
                                          uint32_t* words) {
#pragma unroll
  for (int w = 0; w < kWidth; ++w) words[w] = 0;
#pragma unroll
  for (int j = 0; j < kThreadValues; ++j) {
    const uint32_t bits = codes[j] >> from_bit & ((1U << kWidth) - 1U);
    const int byte = kWidth == 1 ? j / 8 : j % (4 * kWidth);
    const int shift = kWidth == 1 ? j % 8 : kWidth * (j / (4 * kWidth));
    words[byte / 4] |= bits << (8 * (byte % 4) + shift);
  }
}
template <int kWidth>
__device__ __forceinline__ void UnpackPlane(const uint32_t* words, int from_bit,
                                            uint32_t (&codes)[kThreadValues]) {
#pragma unroll
  for (int j = 0; j < kThreadValues; ++j) {
    const int byte = kWidth == 1 ? j / 8 : j % (4 * kWidth);
    const int shift = kWidth == 1 ? j % 8 : kWidth * (j / (4 * kWidth));
    const uint32_t bits = words[byte / 4] >> (8 * (byte % 4) + shift) & ((1U << kWidth) - 1U);
    codes[j] = (from_bit == 0 ? 0U : codes[j]) | bits << from_bit;
  }
}

template <int kBits>
__device__ __forceinline__ void Pack(const uint32_t (&codes)[kThreadValues],
                                     uint32_t (&words)[kBits]) {
  if constexpr (kBits == 8) PackPlane<8>(codes, 0, words);
  if constexpr (kBits >= 4 && kBits < 8) PackPlane<4>(codes, 0, words);
  if constexpr (kBits == 6) PackPlane<2>(codes, 4, words + 4);
  if constexpr (kBits < 4) PackPlane<2>(codes, 0, words);
  if constexpr (kBits == 5 || kBits == 3) PackPlane<1>(codes, kBits - 1, words + kBits - 1);
}
template <int kBits>
__device__ __forceinline__ void Unpack(const uint32_t (&words)[kBits],
                                       uint32_t (&codes)[kThreadValues]) {
  if constexpr (kBits == 8) UnpackPlane<8>(words, 0, codes);
  if constexpr (kBits >= 4 && kBits < 8) UnpackPlane<4>(words, 0, codes);
  if constexpr (kBits == 6) UnpackPlane<2>(words + 4, 4, codes);
  if constexpr (kBits < 4) UnpackPlane<2>(words, 0, codes);
  if constexpr (kBits == 5 || kBits == 3) UnpackPlane<1>(words + kBits - 1, kBits - 1, codes);
}

// Codes of values, which are used up. `rotate`: they are not rotated yet and the codec does.
template <int kBits>
__device__ __forceinline__ void Quantize(const GroupLayout& layout, bool rotate,
                                         float (&x)[kThreadValues], ThreadCode<kBits>* code) {
  const int team = TeamSize(layout);
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    finite = finite && (__float_as_uint(x[i]) & 0x7f800000U) != 0x7f800000U;
  }
  finite = TeamAll(finite, team);
  const float limit = rotate ? kLargestRotated : kLargest;
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    x[i] = finite ? fminf(fmaxf(x[i], -limit), limit) : 0.0F;
  }
  if (rotate) {
    Rotate(layout, x);
#pragma unroll
    for (int i = 0; i < kThreadValues; ++i) x[i] = fminf(fmaxf(x[i], -kLargest), kLargest);
  }
  if (layout.spikes) TakeSpikes(layout, x, code);
  float low = 0.0F;
  float high = 0.0F;
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
  }
  const GroupScale group =
      ScaleOf(TeamMin(low, team), TeamMax(high, team), kBits, layout.log2_scales);
  code->zero = static_cast<uint32_t>(group.zero);
  code->scale = group.code;
  uint32_t codes[kThreadValues];
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    // The reference's q is this less kRounder; its low bits are the code.
    const float q = fmaf(x[i], group.inverse, kRounder + group.zero);
    constexpr float kTop = kRounder + static_cast<float>((1 << kBits) - 1);
    codes[i] = __float_as_uint(fminf(fmaxf(q, kRounder), kTop)) & 0xffU;
  }
  Pack<kBits>(codes, code->words);
  if (finite) return;
  // The codes of zeros, which the values were made, but for what says NaN.
  code->scale = layout.log2_scales ? static_cast<uint32_t>(kNanLog2) : kNanBf16;
  code->spike_values = kNanBf16 | static_cast<uint32_t>(kNanBf16) << 16;
}

template <int kBits>
__device__ __forceinline__ void Dequantize(const GroupLayout& layout, const ThreadCode<kBits>& code,
                                           float (&x)[kThreadValues]) {
  const float scale = layout.log2_scales ? Log2Scale(static_cast<int>(code.scale & 0xffU))
                                         : Bf16ScaleOfCode(static_cast<uint16_t>(code.scale));
  uint32_t codes[kThreadValues];
  Unpack<kBits>(code.words, codes);
  // A float of 2^23 and more has whole numbers in its low bits: the difference is exact.
  constexpr uint32_t kWholeBits = 0x4b000000U;
  const float zero = __uint_as_float(kWholeBits | code.zero);
#pragma unroll
  for (int i = 0; i < kThreadValues; ++i) {
    x[i] = (__uint_as_float(kWholeBits | codes[i]) - zero) * scale;
  }
  if (!layout.spikes) return;
  const int mask = layout.group_size - 1;
  SetInTeam(layout, static_cast<int>(code.spike_indices & 0xffU) & mask,
            SpikeOfCode(static_cast<uint16_t>(code.spike_values & 0xffffU)), x);
  SetInTeam(layout, static_cast<int>(code.spike_indices >> 8) & mask,
            SpikeOfCode(static_cast<uint16_t>(code.spike_values >> 16)), x);
}

}  // namespace nibble::comm::cuda
