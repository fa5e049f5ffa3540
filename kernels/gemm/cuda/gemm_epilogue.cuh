// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From sums to D.
#pragma once

#include "kernels/device/elements.cuh"
#include "kernels/gemm/cuda/gemm_kernels.h"
#include "kernels/gemm/cuda/gemm_tile.cuh"
#include "kernels/gemm/cuda/store_one.cuh"

namespace nibble::kernels::cuda {

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
