// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/barrier.cuh"
#include "base/cuda/launch.h"
#include "kernels/device/wgmma.cuh"
#include "tests/kernels/device/cuda/instructions.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kDepth = 128;  // bytes of a row of A and B

template <int kN>
__device__ void Multiply(int (&d)[kN / 2], const uint32_t (&a)[4], uint64_t descriptor) {
  WgmmaS8<kN>(d, a, descriptor, true);
}
template <int kN>
__device__ void Multiply(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t descriptor) {
  WgmmaBf16<kN>(d, a, descriptor, true);
}

template <int kN, typename Sum>
__global__ void __launch_bounds__(128) WgmmaKernel(const uint8_t* a, const uint8_t* b, Sum* y) {
  uint8_t* const shared = gpu::SharedAs<uint8_t>();
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kN * 8; i += 128) {
    const int row = i / 8;
    const int chunk = i % 8;
    *reinterpret_cast<uint4*>(shared + row * kDepth + (chunk ^ row % 8) * 16) =
        *reinterpret_cast<const uint4*>(b + row * kDepth + chunk * 16);
  }
  gpu::FenceProxyAsync();
  __syncthreads();
  const int g = thread % 32 / 4;
  const int t = thread % 4;
  const int row = thread / 32 * 16 + g;
  uint32_t a_registers[4][4];
  for (int step = 0; step < 4; ++step) {
    for (int i = 0; i < 4; ++i) {
      a_registers[step][i] = *reinterpret_cast<const uint32_t*>(a + (row + i % 2 * 8) * kDepth +
                                                                step * 32 + i / 2 * 16 + 4 * t);
    }
  }
  Sum d[kN / 2];
  for (int i = 0; i < kN / 2; ++i) d[i] = y[(row + i / 2 % 2 * 8) * kN + i / 4 * 8 + 2 * t + i % 2];
  const uint64_t descriptor = SwizzledDescriptor128(shared);
  WgmmaFence();
  Multiply<kN>(d, a_registers[0], descriptor);
  Multiply<kN>(d, a_registers[1], descriptor + 2);
  WgmmaCommit();
  WgmmaFence();
  Multiply<kN>(d, a_registers[2], SwizzledDescriptor128(shared + 64));
  Multiply<kN>(d, a_registers[3], SwizzledDescriptor128(shared + 96));
  WgmmaCommit();
  WgmmaWait<1>();
  WgmmaWait<0>();
  for (int i = 0; i < kN / 2; ++i) WgmmaFenceOperand(d[i]);
  for (int i = 0; i < kN / 2; ++i) y[(row + i / 2 % 2 * 8) * kN + i / 4 * 8 + 2 * t + i % 2] = d[i];
}

template <int kN, typename Sum>
absl::Status LaunchWgmma(const uint8_t* a, const uint8_t* b, Sum* y, cudaStream_t stream) {
  return gpu::Launch(WgmmaKernel<kN, Sum>,
                     {.block = {128}, .shared_bytes = kN * kDepth, .stream = stream}, a, b, y);
}

__global__ void __launch_bounds__(64)
    TensorCopyKernel(const __grid_constant__ gpu::TensorMap map, int x, int y, uint32_t box_bytes,
                     uint8_t* out) {
  uint8_t* const shared = gpu::SharedAs<uint8_t>();
  auto* const barrier = reinterpret_cast<gpu::Barrier*>(shared + box_bytes);
  if (threadIdx.x == 0) {
    gpu::BarrierInit(barrier, 1);
    gpu::BarrierFenceInit();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    gpu::BarrierArriveExpectBytes(barrier, box_bytes);
    gpu::TensorCopy2d(shared, &map, x, y, barrier);
  }
  gpu::BarrierWait(barrier, 0);
  for (uint32_t i = threadIdx.x; i < box_bytes; i += 64) out[i] = shared[i];
}

constexpr int kNumBuffers = 2;
constexpr int kTileValues = 256;
constexpr int kConsumers = 256;

struct Pipeline {
  uint32_t tiles[kNumBuffers][kTileValues];
  gpu::Barrier full[kNumBuffers];
  gpu::Barrier empty[kNumBuffers];
};

__global__ void __launch_bounds__(128 + kConsumers, 1)
    BulkPipelineKernel(const uint32_t* tiles, int num_tiles, uint32_t* sums) {
  auto* const shared = gpu::SharedAs<Pipeline>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kNumBuffers; ++i) {
      gpu::BarrierInit(&shared->full[i], 1);
      gpu::BarrierInit(&shared->empty[i], kConsumers);
    }
    gpu::BarrierFenceInit();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    RegistersDecrease<40>();
    if (threadIdx.x > 0) return;
    for (int tile = 0; tile < num_tiles; ++tile) {
      const int buffer = tile % kNumBuffers;
      const auto turn = static_cast<uint32_t>(tile / kNumBuffers);
      gpu::BarrierWait(&shared->empty[buffer], (turn & 1U) ^ 1U);
      gpu::BarrierArriveExpectBytes(&shared->full[buffer], sizeof(shared->tiles[buffer]));
      gpu::BulkCopy(shared->tiles[buffer], tiles + tile * kTileValues, 512, &shared->full[buffer]);
      gpu::BulkCopy(shared->tiles[buffer] + 128, tiles + tile * kTileValues + 128, 512,
                    &shared->full[buffer]);
    }
    return;
  }
  RegistersIncrease<232>();
  const int thread = static_cast<int>(threadIdx.x) - 128;
  uint32_t sum = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int buffer = tile % kNumBuffers;
    const auto turn = static_cast<uint32_t>(tile / kNumBuffers);
    gpu::BarrierWait(&shared->full[buffer], turn & 1U);
    sum += shared->tiles[buffer][thread];
    gpu::BarrierArrive(&shared->empty[buffer]);
  }
  sums[thread] = sum;
}

__global__ void __launch_bounds__(96) NamedBarrierKernel(uint32_t* values) {
  auto* const shared = gpu::SharedAs<uint32_t>();
  const uint32_t warp = threadIdx.x / 32;
  if (warp == 2) return;  // barriers of 64 do not know it
  for (uint32_t round = 0; round < 2; ++round) {
    if (warp == 1) {
      if (round > 0) gpu::NamedBarrierSync<2>(64);
      shared[threadIdx.x - 32] = threadIdx.x * 7 + round;
      gpu::NamedBarrierSync<1>(64);
    } else {
      gpu::NamedBarrierSync<1>(64);
      values[round * 32 + threadIdx.x] = shared[31 - threadIdx.x];
      if (round == 0) gpu::NamedBarrierSync<2>(64);
    }
  }
}

}  // namespace

absl::Status RunWgmma(int n, const uint8_t* a, const uint8_t* b, int* y, cudaStream_t stream) {
  switch (n) {
    case 8:
      return LaunchWgmma<8>(a, b, y, stream);
    case 16:
      return LaunchWgmma<16>(a, b, y, stream);
    case 32:
      return LaunchWgmma<32>(a, b, y, stream);
    case 64:
      return LaunchWgmma<64>(a, b, y, stream);
    case 96:
      return LaunchWgmma<96>(a, b, y, stream);
    case 128:
      return LaunchWgmma<128>(a, b, y, stream);
    case 192:
      return LaunchWgmma<192>(a, b, y, stream);
    case 256:
      return LaunchWgmma<256>(a, b, y, stream);
    default:
      return InvalidArgument("wgmma of {} columns", n);
  }
}

absl::Status RunWgmmaBf16(const uint8_t* a, const uint8_t* b, float* y, cudaStream_t stream) {
  return LaunchWgmma<128>(a, b, y, stream);
}

absl::Status RunTensorCopy(const gpu::TensorMap& map, int x, int y, uint32_t box_bytes,
                           uint8_t* shared, cudaStream_t stream) {
  return gpu::Launch(
      TensorCopyKernel,
      {.block = {64}, .shared_bytes = box_bytes + sizeof(gpu::Barrier), .stream = stream}, map, x,
      y, box_bytes, shared);
}

absl::Status RunBulkPipeline(const uint32_t* tiles, int num_tiles, uint32_t* sums,
                             cudaStream_t stream) {
  return gpu::Launch(
      BulkPipelineKernel,
      {.block = {128 + kConsumers}, .shared_bytes = sizeof(Pipeline), .stream = stream}, tiles,
      num_tiles, sums);
}

absl::Status RunNamedBarrier(uint32_t* values, cudaStream_t stream) {
  return gpu::Launch(NamedBarrierKernel, {.block = {96}, .shared_bytes = 128, .stream = stream},
                     values);
}

}  // namespace nibble::kernels::cuda
