// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/async_copy.cuh"
#include "base/cuda/float16.cuh"
#include "base/cuda/launch.h"
#include "base/cuda/memory.cuh"
#include "kernels/device/exp.cuh"
#include "kernels/device/ldmatrix.cuh"
#include "kernels/device/mma.cuh"
#include "tests/kernels/device/cuda/instructions.h"

namespace nibble::kernels::cuda {
namespace {

// Fragments by the drawing of mma.cuh.
template <typename D, typename Mma>
__device__ void MultiplyFragments(const uint8_t* a, const uint8_t* b, D* d, Mma mma) {
  const int g = static_cast<int>(threadIdx.x) / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  const auto load = [](const uint8_t* rows, int row, int byte) {
    return *reinterpret_cast<const uint32_t*>(rows + row * 32 + byte);
  };
  const uint32_t a_registers[4] = {load(a, g, 4 * t), load(a, g + 8, 4 * t), load(a, g, 4 * t + 16),
                                   load(a, g + 8, 4 * t + 16)};
  const uint32_t b_registers[2] = {load(b, g, 4 * t), load(b, g, 4 * t + 16)};
  D* const low = d + g * 8 + 2 * t;
  D* const high = d + (g + 8) * 8 + 2 * t;
  D sums[4] = {low[0], low[1], high[0], high[1]};
  mma(sums, a_registers, b_registers);
  low[0] = sums[0];
  low[1] = sums[1];
  high[0] = sums[2];
  high[1] = sums[3];
}

__global__ void __launch_bounds__(32) MmaS8Kernel(const uint8_t* a, const uint8_t* b, int* d) {
  MultiplyFragments(a, b, d, [](auto& sums, auto& x, auto& y) { MmaS8(sums, x, y); });
}
__global__ void __launch_bounds__(32) MmaBf16Kernel(const uint8_t* a, const uint8_t* b, float* d) {
  MultiplyFragments(a, b, d, [](auto& sums, auto& x, auto& y) { MmaBf16(sums, x, y); });
}
__global__ void __launch_bounds__(32) MmaF16Kernel(const uint8_t* a, const uint8_t* b, float* d) {
  MultiplyFragments(a, b, d, [](auto& sums, auto& x, auto& y) { MmaF16(sums, x, y); });
}

constexpr int kRowStride = 48;  // of a matrix's rows in shared memory

template <int kNumMatrices, bool kTransposed>
__global__ void __launch_bounds__(32) LoadMatrixKernel(const uint4* rows, uint32_t* registers) {
  uint8_t* const shared = gpu::SharedAs<uint8_t>();
  const int lane = static_cast<int>(threadIdx.x);
  uint8_t* const row = shared + lane % (8 * kNumMatrices) * kRowStride;
  *reinterpret_cast<uint4*>(row) = rows[lane % (8 * kNumMatrices)];
  __syncthreads();
  uint32_t r[kNumMatrices];
  static_assert(kTransposed || kNumMatrices == 4);
  if constexpr (!kTransposed) LoadMatrixX4(r, row);
  if constexpr (kNumMatrices == 4 && kTransposed) LoadMatrixX4Trans(r, row);
  if constexpr (kNumMatrices == 2) LoadMatrixX2Trans(r, row);
  for (int i = 0; i < kNumMatrices; ++i) registers[lane * kNumMatrices + i] = r[i];
}

constexpr int kTileThreads = 64;

template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    CopyAsyncKernel(const T* tiles, int num_tiles, T* copied) {
  T* const shared = gpu::SharedAs<T>();
  const int thread = static_cast<int>(threadIdx.x);
  const auto start = [&](int tile) {
    if (tile < num_tiles) {
      constexpr auto kCopy = sizeof(T) == 16 ? gpu::CopyAsync16 : gpu::CopyAsync4;
      kCopy(shared + tile % 2 * kTileThreads + thread, tiles + tile * kTileThreads + thread,
            thread % 5 == 0);
    }
    gpu::CopyAsyncCommit();
  };
  start(0);
  for (int tile = 0; tile < num_tiles; ++tile) {
    start(tile + 1);
    gpu::CopyAsyncWait<1>();
    __syncthreads();
    copied[tile * kTileThreads + thread] =
        shared[tile % 2 * kTileThreads + (thread + 1) % kTileThreads];
    __syncthreads();
  }
}

__global__ void __launch_bounds__(128) ConvertKernel(const float* x, Converted* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const gpu::Bf16 bf16 = gpu::ToBf16(x[i]);
  const gpu::Half half = gpu::ToHalf(x[i]);
  const uint32_t bf16_pair = gpu::PackBf16x2(x[i], -x[i]);
  const uint32_t half_pair = gpu::PackHalfx2(x[i], -x[i]);
  y[i] = {.bf16 = bf16.bits,
          .half = half.bits,
          .bf16_pair = bf16_pair,
          .half_pair = half_pair,
          .from_bf16 = gpu::ToFloat(bf16),
          .from_half = gpu::ToFloat(half),
          .from_bf16_high = gpu::UnpackBf16x2(bf16_pair).y,
          .from_half_high = gpu::UnpackHalfx2(half_pair).y};
}

__global__ void __launch_bounds__(128) ExpKernel(const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = Exp(x[i]);
}

__global__ void __launch_bounds__(32)
    HandOverKernel(int n, uint4* values, uint32_t* flags, uint4* copied) {
  const bool writes = blockIdx.x == 0;
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < n; i += 32) {
    const auto value = static_cast<uint32_t>(i + 1);
    if (writes) {
      values[i] = make_uint4(value, value * 3, value * 5, value * 7);
      values[n + i] = make_uint4(value * 11, 0, 0, 1);
      values[2 * n + i] = make_uint4(value, value, value, 1);
    }
  }
  __syncthreads();
  if (writes && lane == 0) {
    gpu::StoreReleaseDevice(flags, 1);
    gpu::StoreReleaseSystem(flags + 1, 1);
  }
  if (writes) return;
  while (gpu::LoadAcquireDevice(flags) == 0) {
  }
  for (int i = lane; i < n; i += 32) copied[i] = values[i];
  while (gpu::LoadAcquireSystem(flags + 1) == 0) {
  }
  for (int i = lane; i < n; i += 32) {
    copied[n + i] = values[n + i];
    copied[2 * n + i] = gpu::LoadVolatile16(values + 2 * n + i);
  }
}

}  // namespace

absl::Status RunMmaS8(const uint8_t* a, const uint8_t* b, int* d, cudaStream_t stream) {
  return gpu::Launch(MmaS8Kernel, {.block = {32}, .stream = stream}, a, b, d);
}
absl::Status RunMmaBf16(const uint8_t* a, const uint8_t* b, float* d, cudaStream_t stream) {
  return gpu::Launch(MmaBf16Kernel, {.block = {32}, .stream = stream}, a, b, d);
}
absl::Status RunMmaF16(const uint8_t* a, const uint8_t* b, float* d, cudaStream_t stream) {
  return gpu::Launch(MmaF16Kernel, {.block = {32}, .stream = stream}, a, b, d);
}

absl::Status RunLoadMatrix(int num_matrices, bool transposed, const uint16_t* rows,
                           uint32_t* registers, cudaStream_t stream) {
  auto* const kernel = !transposed         ? LoadMatrixKernel<4, false>
                       : num_matrices == 4 ? LoadMatrixKernel<4, true>
                                           : LoadMatrixKernel<2, true>;
  return gpu::Launch(kernel, {.block = {32}, .shared_bytes = 32 * kRowStride, .stream = stream},
                     reinterpret_cast<const uint4*>(rows), registers);
}

template <typename T>
absl::Status RunCopyAsync(const T* tiles, int num_tiles, T* copied, cudaStream_t stream) {
  return gpu::Launch(
      CopyAsyncKernel<T>,
      {.block = {kTileThreads}, .shared_bytes = 2 * kTileThreads * sizeof(T), .stream = stream},
      tiles, num_tiles, copied);
}
template absl::Status RunCopyAsync(const uint4*, int, uint4*, cudaStream_t);
template absl::Status RunCopyAsync(const uint32_t*, int, uint32_t*, cudaStream_t);

absl::Status RunConvert(const float* x, Converted* y, int n, cudaStream_t stream) {
  return gpu::Launch(
      ConvertKernel,
      {.grid = {static_cast<unsigned>(n + 127) / 128}, .block = {128}, .stream = stream}, x, y, n);
}
absl::Status RunExp(const float* x, float* y, int n, cudaStream_t stream) {
  return gpu::Launch(
      ExpKernel, {.grid = {static_cast<unsigned>(n + 127) / 128}, .block = {128}, .stream = stream},
      x, y, n);
}

absl::Status RunHandOver(int n, uint4* values, uint32_t* flags, uint4* copied,
                         cudaStream_t stream) {
  return gpu::Launch(HandOverKernel,
                     {.grid = {2}, .block = {32}, .stream = stream, .cooperative = true}, n, values,
                     flags, copied);
}

}  // namespace nibble::kernels::cuda
