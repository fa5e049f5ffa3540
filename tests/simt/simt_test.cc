// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator itself: what it must find in broken kernels.
#include <cuda_runtime.h>

#include <vector>

#include "gtest/gtest.h"

#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"

namespace nibble {
namespace {

struct Shared {
  float scratch[4];
};

__global__ void SumRows(const float* x, float* y) {
  const float value = x[blockIdx.x * blockDim.x + threadIdx.x];
  const float sum = gpu::BlockSum(value, gpu::SharedAs<Shared>()->scratch);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

TEST(Simt, RunsBlocksThatMeetAtBarriers) {
  std::vector<float> x(3 * 128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  std::vector<float> y(3);
  for (int launch = 0; launch < 4; ++launch) {
    cudaLaunchConfig_t config{
        .gridDim = {3}, .blockDim = {128}, .dynamicSmemBytes = sizeof(Shared)};
    ASSERT_EQ(cudaLaunchKernelEx(&config, SumRows, x.data(), y.data()), cudaSuccess);
    EXPECT_EQ(y, (std::vector<float>{8128, 24512, 40896}));
  }
}

__global__ void MissesABarrier(int* y) {
  int* const shared = gpu::SharedAs<int>();
  if (threadIdx.x == 0) *shared = 5;
  y[threadIdx.x] = *shared;
}

TEST(Simt, AMissingBarrierGivesAWrongResultInSomeOrder) {
  int num_wrong = 0;
  for (int launch = 0; launch < 4; ++launch) {
    std::vector<int> y(64);
    cudaLaunchConfig_t config{.gridDim = {1}, .blockDim = {64}, .dynamicSmemBytes = 4};
    ASSERT_EQ(cudaLaunchKernelEx(&config, MissesABarrier, y.data()), cudaSuccess);
    num_wrong += y != std::vector<int>(64, 5);
  }
  EXPECT_GT(num_wrong, 0);
}

__global__ void LeavesLanesBehind() {
  if (threadIdx.x < 16) __syncwarp();
}

TEST(SimtDeathTest, ThreadsThatWaitInVainAreNamed) {
  cudaLaunchConfig_t config{.gridDim = {1}, .blockDim = {32}};
  EXPECT_DEATH((void)cudaLaunchKernelEx(&config, LeavesLanesBehind),
               "wait for each other in vain.*__syncwarp");
}

TEST(Simt, StreamsRunWhenSomebodyWaits) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  void* data = nullptr;
  ASSERT_EQ(cudaMalloc(&data, 4), cudaSuccess);
  void* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, 4), cudaSuccess);
  *static_cast<int*>(pinned) = 7;
  ASSERT_EQ(cudaMemsetAsync(data, 0, 4, stream), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(pinned, data, 4, cudaMemcpyDeviceToHost, stream), cudaSuccess);
  EXPECT_EQ(*static_cast<int*>(pinned), 7);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(*static_cast<int*>(pinned), 0);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaFree(data), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

}  // namespace
}  // namespace nibble
