// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// From the sums of a tile to D: parts of k together, then scaled and through shared memory, as a
// lane has two channels of many tokens and D wants many channels of a token side by side. A math
// warpgroup does its 64 channels alone.
#pragma once

#include "base/cuda/float16.cuh"
#include "kernels/gemm/cuda/wgmma_mainloop.cuh"

namespace nibble::kernels::cuda {

__device__ __forceinline__ int MathWarpgroup() { return MathWarp() / 4; }

__device__ __forceinline__ void SyncWarpgroup() {
  if (MathWarpgroup() == 0) {
    gpu::NamedBarrierSync<1>(kWarpgroupSize);
  } else {
    gpu::NamedBarrierSync<2>(kWarpgroupSize);
  }
}

__device__ __forceinline__ uint32_t BitsOf(int sum) { return static_cast<uint32_t>(sum); }
__device__ __forceinline__ uint32_t BitsOf(float sum) { return __float_as_uint(sum); }
__device__ __forceinline__ int AddBits(int sum, uint32_t bits) {
  return sum + static_cast<int>(bits);
}
__device__ __forceinline__ float AddBits(float sum, uint32_t bits) {
  return sum + __uint_as_float(bits);
}

// Leaves this part's sums in memory; the last part to come finds all of them and adds them up in
// their order. True for that one, which then has the sums of all of k.
template <int kTokens, Form kForm, typename Sum>
__device__ __forceinline__ bool AddParts(const WgmmaArgs& args, const WgmmaWork& work,
                                         WgmmaShared<kForm, kTokens>* shared,
                                         Sum (&sums)[kTokens / 2]) {
  constexpr int kVectors = kTokens / 8;
  const int warpgroup = MathWarpgroup();
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroupSize;
  const int splits = args.grid.splits;
  const auto part = [&](int split) {
    const int64_t index = (int64_t{work.output_tile} * splits + split) * 2 + warpgroup;
    return static_cast<uint4*>(args.gemm.partials) + index * (kVectors * kWarpgroupSize) + thread;
  };
  uint4* const mine = part(work.split);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    mine[v * kWarpgroupSize] = {BitsOf(sums[4 * v]), BitsOf(sums[4 * v + 1]),
                                BitsOf(sums[4 * v + 2]), BitsOf(sums[4 * v + 3])};
  }
  __threadfence();
  SyncWarpgroup();
  if (thread == 0) {
    const uint32_t before = atomicAdd(&args.counters[work.output_tile * 2 + warpgroup], 1U);
    shared->is_last[warpgroup] = before + 1 == static_cast<uint32_t>(splits) ? 1 : 0;
    __threadfence();
  }
  SyncWarpgroup();
  if (shared->is_last[warpgroup] == 0) return false;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sums[i] = 0;
  for (int split = 0; split < splits; ++split) {
    const uint4* const other = part(split);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const uint4 bits = other[v * kWarpgroupSize];
      sums[4 * v] = AddBits(sums[4 * v], bits.x);
      sums[4 * v + 1] = AddBits(sums[4 * v + 1], bits.y);
      sums[4 * v + 2] = AddBits(sums[4 * v + 2], bits.z);
      sums[4 * v + 3] = AddBits(sums[4 * v + 3], bits.w);
    }
  }
  return true;
}

// What a thread stores: four channels of one token after the other.
struct OutputColumns {
  int channel;
  int count;  // of them that exist
  float scales[4];
  float bias[4];
};

template <Form kForm>
__device__ __forceinline__ OutputColumns LoadColumns(const GemmKernelArgs& args,
                                                     const WgmmaWork& work) {
  OutputColumns columns;
  columns.channel = work.channel + MathWarpgroup() * 64 + static_cast<int>(threadIdx.x) % 16 * 4;
  columns.count = min(4, args.n - columns.channel);
  const auto* const channel_scales =
      reinterpret_cast<const float*>(work.weight.scales + args.channel_offset);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const bool exists = c < columns.count;
    columns.scales[c] =
        kForm != Form::kFloatScales && exists ? channel_scales[columns.channel + c] : 1.0F;
    columns.bias[c] = args.bias != nullptr && exists ? args.bias[columns.channel + c] : 0.0F;
  }
  return columns;
}

__device__ __forceinline__ void StoreColumns(const GemmKernelArgs& args,
                                             const OutputColumns& columns, int row,
                                             const float (&values)[4]) {
  const int64_t at = row * args.d.stride + columns.channel;
  if (args.d.dtype == DType::kBf16) {
    auto* const d = static_cast<gpu::Bf16*>(args.d.data) + at;
    if (columns.count == 4) {
      *reinterpret_cast<uint2*>(d) = {gpu::PackBf16x2(values[0], values[1]),
                                      gpu::PackBf16x2(values[2], values[3])};
      return;
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      if (c < columns.count) d[c] = gpu::ToBf16(values[c]);
    }
    return;
  }
  auto* const d = static_cast<float*>(args.d.data) + at;
  if (columns.count == 4) {
    *reinterpret_cast<float4*>(d) = {values[0], values[1], values[2], values[3]};
    return;
  }
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    if (c < columns.count) d[c] = values[c];
  }
}

// d = float(sum) * (s_a * c) + bias, each step rounded once; of float sums, sum * s_a + bias.
template <Form kForm, int kTokens, typename Sum>
__device__ __forceinline__ void StoreTile(const GemmKernelArgs& args, const WgmmaWork& work,
                                          WgmmaShared<kForm, kTokens>* shared,
                                          const Sum (&sums)[kTokens / 2]) {
  constexpr int kStagedTokens = WgmmaStagedTokens(kTokens);
  constexpr int kRowsAtOnce = kWarpgroupSize / 16;
  const int lane = gpu::LaneId();
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroupSize;
  float* const staged = shared->staged[MathWarpgroup()];
  const OutputColumns columns = LoadColumns<kForm>(args, work);
#pragma unroll
  for (int base = 0; base < kTokens; base += kStagedTokens) {
    if (work.row_begin + base >= work.row_end) break;
    SyncWarpgroup();  // those who read what is there are done
    float* const mine = staged + lane % 4 * 2 * kWgmmaStagedStride + MathWarp() % 4 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kStagedTokens / 2; ++i) {
      // 4j + 2h + p: channel g + 8h of token 8j + 2t + p.
      const int token = i / 4 * 8 + i % 2;
      mine[token * kWgmmaStagedStride + i / 2 % 2 * 8] = static_cast<float>(sums[base / 2 + i]);
    }
    SyncWarpgroup();
#pragma unroll
    for (int first = 0; first < kStagedTokens; first += kRowsAtOnce) {
      const int token = first + thread / 16;
      const int row = work.row_begin + base + token;
      if (row >= work.row_end || columns.count <= 0) continue;
      const float4 at =
          *reinterpret_cast<const float4*>(staged + token * kWgmmaStagedStride + thread % 16 * 4);
      const float s_a = args.a_scales[args.a_rows != nullptr ? args.a_rows[row] : row];
      float values[4] = {at.x, at.y, at.z, at.w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        values[c] *= kForm == Form::kFloatScales ? s_a : s_a * columns.scales[c];
        if (args.bias != nullptr) values[c] += columns.bias[c];
      }
      StoreColumns(args, columns, row, values);
    }
  }
}

}  // namespace nibble::kernels::cuda
