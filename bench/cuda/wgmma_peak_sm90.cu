// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/barrier.cuh"
#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "bench/cuda/wgmma_peak.h"
#include "kernels/device/wgmma.cuh"

namespace nibble::bench {
namespace {

constexpr int kTokens = 128;
constexpr int kWarpgroups = 2;
constexpr int kThreads = kWarpgroups * 128;
constexpr int kPerRound = 8;  // instructions of a group

struct Shared {
  alignas(1024) uint32_t tokens[kTokens * 128 / 4];
};

// Two warpgroups, as the kernels have: while one waits the other multiplies.
__global__ __launch_bounds__(kThreads, 1) void WgmmaPeakKernel(int rounds, uint32_t* sink) {
  auto* const shared = gpu::SharedAs<Shared>();
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * 128 / 4; i += kThreads) {
    shared->tokens[i] = static_cast<uint32_t>(i);
  }
  gpu::FenceProxyAsync();
  __syncthreads();
  const uint64_t descriptor = kernels::cuda::SwizzledDescriptor128(shared->tokens);
  const uint32_t a[4] = {threadIdx.x, threadIdx.x + 1, threadIdx.x + 2, threadIdx.x + 3};
  int sums[kTokens / 2] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) kernels::cuda::WgmmaFenceOperand(sums[i]);
    kernels::cuda::WgmmaFence();
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) {
      kernels::cuda::WgmmaS8<kTokens>(sums, a, descriptor + 2 * (i % 4), true);
    }
    kernels::cuda::WgmmaCommit();
    kernels::cuda::WgmmaWait<0>();
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) kernels::cuda::WgmmaFenceOperand(sums[i]);
  }
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sum += sums[i];
  if (sum == 0x12345678) *sink = 1;
}

}  // namespace

absl::StatusOr<double> LaunchWgmmaPeak(int rounds, uint32_t* sink, int num_sms,
                                       cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(gpu::Launch(WgmmaPeakKernel,
                                     {.grid = {static_cast<unsigned>(num_sms)},
                                      .block = {kThreads},
                                      .shared_bytes = sizeof(Shared),
                                      .stream = stream},
                                     rounds, sink));
  constexpr double kOps = 2.0 * 64 * kTokens * 32;
  return kOps * kPerRound * rounds * kWarpgroups * num_sms;
}

}  // namespace nibble::bench
