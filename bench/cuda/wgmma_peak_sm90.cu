// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/barrier.cuh"
#include "base/cuda/launch.h"
#include "base/cuda/shared_memory.cuh"
#include "bench/cuda/peak_operand.cuh"
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

__device__ __forceinline__ void Multiply(int (&sums)[kTokens / 2], const uint32_t (&a)[4],
                                         uint64_t descriptor) {
  kernels::cuda::WgmmaS8<kTokens>(sums, a, descriptor, true);
}
__device__ __forceinline__ void Multiply(float (&sums)[kTokens / 2], const uint32_t (&a)[4],
                                         uint64_t descriptor) {
  kernels::cuda::WgmmaBf16<kTokens>(sums, a, descriptor, true);
}

// Two warpgroups, as the kernels have: while one waits the other multiplies.
template <typename Sum>
__global__ __launch_bounds__(kThreads, 1) void WgmmaPeakKernel(int rounds, uint32_t* sink) {
  auto* const shared = gpu::SharedAs<Shared>();
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * 128 / 4; i += kThreads) {
    shared->tokens[i] = PeakOperand<Sum>(static_cast<uint32_t>(i));
  }
  gpu::FenceProxyAsync();
  __syncthreads();
  const uint64_t descriptor = kernels::cuda::SwizzledDescriptor128(shared->tokens);
  uint32_t a[4];
  for (uint32_t i = 0; i < 4; ++i) a[i] = PeakOperand<Sum>(threadIdx.x * 4 + i);
  Sum sums[kTokens / 2] = {};
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) kernels::cuda::WgmmaFenceOperand(sums[i]);
    kernels::cuda::WgmmaFence();
#pragma unroll
    for (int i = 0; i < kPerRound; ++i) {
      Multiply(sums, a, descriptor + 2 * (i % 4));
    }
    kernels::cuda::WgmmaCommit();
    kernels::cuda::WgmmaWait<0>();
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) kernels::cuda::WgmmaFenceOperand(sums[i]);
  }
  Sum sum = 0;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) sum += sums[i];
  if (sum == static_cast<Sum>(0x12345678)) *sink = 1;
}

// `k` of the instruction.
template <typename Sum>
absl::StatusOr<double> LaunchPeak(int k, int rounds, uint32_t* sink, int num_sms,
                                  cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(gpu::Launch(WgmmaPeakKernel<Sum>,
                                     {.grid = {static_cast<unsigned>(num_sms)},
                                      .block = {kThreads},
                                      .shared_bytes = sizeof(Shared),
                                      .stream = stream},
                                     rounds, sink));
  const double ops = 2.0 * 64 * kTokens * k;
  return ops * kPerRound * rounds * kWarpgroups * num_sms;
}

}  // namespace

absl::StatusOr<double> LaunchWgmmaInt8Peak(int rounds, uint32_t* sink, int num_sms,
                                           cudaStream_t stream) {
  return LaunchPeak<int>(32, rounds, sink, num_sms, stream);
}

absl::StatusOr<double> LaunchWgmmaBf16Peak(int rounds, uint32_t* sink, int num_sms,
                                           cudaStream_t stream) {
  return LaunchPeak<float>(16, rounds, sink, num_sms, stream);
}

}  // namespace nibble::bench
