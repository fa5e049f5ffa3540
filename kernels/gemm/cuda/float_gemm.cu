// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// kFloat: float32 weights by fused multiply-adds, one for each k in rising order: the bits of the
// CPU variants. For models that are run in full precision to be compared with.

#include "base/cuda/shared_memory.cuh"
#include "kernels/gemm/cuda/gemm_tile.cuh"
#include "kernels/gemm/cuda/store_one.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDepth = 16;            // k at a time
constexpr int kPitch = kDepth + 1;    // against bank conflicts
constexpr int kChannelsOfThread = 4;  // 16 apart
constexpr int kTokensOfThread = 2;    // 16 apart
constexpr int kThreadsOfSide = 16;

struct Shared {
  float weights[kFloatChannels][kPitch];
  float tokens[kFloatTokens][kPitch];
};

__global__ __launch_bounds__(kThreads, 2) void FloatKernel(const GemmKernelArgs args) {
  auto* const shared = gpu::SharedAs<Shared>();
  BlockWork work;
  if (!FindWork<kFloatTokens>(args, &work)) return;
  const auto thread = static_cast<int>(threadIdx.x);
  const int first_channel = work.channel_tile * kFloatChannels;
  const auto k = static_cast<int>(args.a_row_bytes / int64_t{sizeof(float)});
  const auto* const weights = reinterpret_cast<const float*>(work.weight.codes);
  const int64_t weight_stride = int64_t{args.num_stages} * (kStageBytes / int64_t{sizeof(float)});
  float sums[kChannelsOfThread][kTokensOfThread] = {};
  for (int begin = 0; begin < k; begin += kDepth) {
    const int depth = min(kDepth, k - begin);
    const int column = thread % kDepth;
    for (int row = thread / kDepth; row < kFloatChannels; row += kThreads / kDepth) {
      // The layout has rows of zeros up to a multiple of 64.
      shared->weights[row][column] =
          column < depth ? weights[(first_channel + row) * weight_stride + begin + column] : 0.0F;
    }
    for (int row = thread / kDepth; row < kFloatTokens; row += kThreads / kDepth) {
      float x = 0.0F;
      if (column < depth && work.row_begin + row < work.row_end) {
        x = reinterpret_cast<const float*>(args.a + RowOfA(args, work.row_begin + row) *
                                                        args.a_stride_bytes)[begin + column];
      }
      shared->tokens[row][column] = x;
    }
    __syncthreads();
    for (int i = 0; i < depth; ++i) {
#pragma unroll
      for (int c = 0; c < kChannelsOfThread; ++c) {
#pragma unroll
        for (int t = 0; t < kTokensOfThread; ++t) {
          sums[c][t] =
              fmaf(shared->tokens[thread / kThreadsOfSide + t * kThreadsOfSide][i],
                   shared->weights[thread % kThreadsOfSide + c * kThreadsOfSide][i], sums[c][t]);
        }
      }
    }
    __syncthreads();
  }
  for (int t = 0; t < kTokensOfThread; ++t) {
    const int row = work.row_begin + thread / kThreadsOfSide + t * kThreadsOfSide;
    if (row >= work.row_end) continue;
    for (int c = 0; c < kChannelsOfThread; ++c) {
      const int channel = first_channel + thread % kThreadsOfSide + c * kThreadsOfSide;
      if (channel >= args.n) continue;
      float y = sums[c][t];
      if (args.bias != nullptr) y += args.bias[channel];
      StoreOne(args.d, row * args.d.stride + channel, y);
    }
  }
}

}  // namespace

absl::Status LaunchFloat(const GemmLaunch& launch) {
  static_assert(kFloatChannels == kChannelsOfThread * kThreadsOfSide &&
                kFloatTokens == kTokensOfThread * kThreadsOfSide &&
                kThreads == kThreadsOfSide * kThreadsOfSide && kFloatChannels == kPanelChannels);
  const GemmKernelArgs& args = launch.args;
  const int channel_tiles = (args.n + kFloatChannels - 1) / kFloatChannels;
  return gpu::Launch(
      FloatKernel,
      {.grid = {static_cast<unsigned>(channel_tiles) * static_cast<unsigned>(args.token_tiles)},
       .block = {kThreads},
       .shared_bytes = sizeof(Shared),
       .stream = launch.stream},
      args);
}

}  // namespace nibble::kernels::cuda
