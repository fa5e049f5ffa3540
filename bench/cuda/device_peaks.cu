// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/launch.h"
#include "base/cuda/memory.cuh"
#include "bench/cuda/device_peaks.h"
#include "bench/cuda/peak_operand.cuh"
#include "bench/cuda/wgmma_peak.h"
#include "kernels/device/mma.cuh"

namespace nibble::bench {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kBlocksPerSm = 8;
// Loads of a thread that are under way together: 8 blocks of 256 threads have 128 KiB.
constexpr int kLoads = 4;
constexpr int kChains = 8;

__global__ __launch_bounds__(kThreads) void ReadKernel(const uint4* data, int64_t count,
                                                       uint32_t* sink) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  uint32_t sum = 0;
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kLoads - 1) * threads < count; i += kLoads * threads) {
    uint4 values[kLoads];
#pragma unroll
    for (int l = 0; l < kLoads; ++l) values[l] = gpu::LoadStreaming16(data + i + l * threads);
#pragma unroll
    for (int l = 0; l < kLoads; ++l) sum |= values[l].x | values[l].y | values[l].z | values[l].w;
  }
  for (; i < count; i += threads) {
    const uint4 value = gpu::LoadStreaming16(data + i);
    sum |= value.x | value.y | value.z | value.w;
  }
  // Never, of so many random bits; the compiler does not know.
  if (sum == 0x12345678) *sink = sum;
}

__device__ __forceinline__ void Multiply(int (&sums)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  kernels::cuda::MmaS8(sums, a, b);
}
__device__ __forceinline__ void Multiply(float (&sums)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  kernels::cuda::MmaBf16(sums, a, b);
}

template <typename Sum>
__global__ __launch_bounds__(kThreads) void MmaPeakKernel(int rounds, uint32_t* sink) {
  Sum sums[kChains][4] = {};
  uint32_t a[4];
  for (uint32_t i = 0; i < 4; ++i) a[i] = PeakOperand<Sum>(threadIdx.x * 8 + i);
  uint32_t b[2];
  for (uint32_t i = 0; i < 2; ++i) b[i] = PeakOperand<Sum>(threadIdx.x * 8 + 4 + i);
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) Multiply(sums[c], a, b);
  }
  Sum sum = 0;
#pragma unroll
  for (int c = 0; c < kChains; ++c) sum += sums[c][0] + sums[c][1] + sums[c][2] + sums[c][3];
  if (sum == static_cast<Sum>(0x12345678)) *sink = 1;
}

// `k` of the instruction.
template <typename Sum>
absl::StatusOr<double> LaunchMmaPeak(int k, int rounds, uint32_t* sink, const gpu::DeviceCaps& caps,
                                     cudaStream_t stream) {
  constexpr int kBlocks = 4;  // 32 warps on a multiprocessor
  NIBBLE_RETURN_IF_ERROR(gpu::Launch(MmaPeakKernel<Sum>,
                                     {.grid = {static_cast<unsigned>(caps.num_sms * kBlocks)},
                                      .block = {kThreads},
                                      .stream = stream},
                                     rounds, sink));
  const double ops = 2.0 * 16 * 8 * k;
  return ops * kChains * rounds * (kThreads / 32) * kBlocks * caps.num_sms;
}

}  // namespace

absl::Status LaunchRead(const void* data, int64_t bytes, uint32_t* sink,
                        const gpu::DeviceCaps& caps, cudaStream_t stream) {
  return gpu::Launch(ReadKernel,
                     {.grid = {static_cast<unsigned>(caps.num_sms * kBlocksPerSm)},
                      .block = {kThreads},
                      .stream = stream},
                     static_cast<const uint4*>(data), bytes / 16, sink);
}

absl::StatusOr<double> LaunchInt8Peak(int rounds, uint32_t* sink, const gpu::DeviceCaps& caps,
                                      cudaStream_t stream) {
#ifdef NIBBLE_SM90
  if (caps.sm == 90) return LaunchWgmmaInt8Peak(rounds, sink, caps.num_sms, stream);
#endif
  return LaunchMmaPeak<int>(32, rounds, sink, caps, stream);
}

absl::StatusOr<double> LaunchBf16Peak(int rounds, uint32_t* sink, const gpu::DeviceCaps& caps,
                                      cudaStream_t stream) {
#ifdef NIBBLE_SM90
  if (caps.sm == 90) return LaunchWgmmaBf16Peak(rounds, sink, caps.num_sms, stream);
#endif
  return LaunchMmaPeak<float>(16, rounds, sink, caps, stream);
}

}  // namespace nibble::bench
