// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator itself: what it must find in broken kernels.
#include "tests/simt/simt.h"

#include <set>
#include <thread>
#include <vector>

#include "base/cuda/memory.cuh"
#include "base/cuda/reduce.cuh"
#include "base/cuda/shared_memory.cuh"
#include "tests/simt/launch.h"

namespace simt {
namespace {

using nibble::gpu::SharedAs;

struct Shared {
  float scratch[4];
};

__global__ void SumRows(const float* x, float* y) {
  const float value = x[blockIdx.x * blockDim.x + threadIdx.x];
  const float sum = nibble::gpu::BlockSum(value, SharedAs<Shared>()->scratch);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

TEST(Simt, RunsBlocksThatMeetAtBarriers) {
  std::vector<float> x(3 * 128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  for (int launch = 0; launch < 4; ++launch) {
    std::vector<float> y(3);
    Launch(SumRows, {3, 128, sizeof(Shared)}, x.data(), y.data());
    EXPECT_EQ(y, (std::vector<float>{8128, 24512, 40896}));
  }
}

__global__ void WriteOwnCoordinates(int* y) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  y[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<int>(block * 100 + thread);
}

TEST(Simt, EveryThreadRunsOnce) {
  for (const bool cooperative : {false, true}) {
    std::vector<int> y(12 * 30, -1);
    cudaLaunchAttribute attribute{.id = cudaLaunchAttributeCooperative, .val = {.cooperative = 1}};
    cudaLaunchConfig_t config{.gridDim = {2, 3, 2},
                              .blockDim = {5, 3, 2},
                              .attrs = &attribute,
                              .numAttrs = cooperative ? 1U : 0U};
    ASSERT_EQ(cudaLaunchKernelEx(&config, WriteOwnCoordinates, y.data()), cudaSuccess);
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], i / 30 * 100 + i % 30);
  }
}

__global__ void MissesABarrier(int* y) {
  int* const shared = SharedAs<int>();
  if (threadIdx.x == 0) *shared = 5;
  y[threadIdx.x] = *shared;
}

TEST(Simt, AMissingBarrierGivesAWrongResultInSomeOrder) {
  int num_wrong = 0;
  for (int launch = 0; launch < 4; ++launch) {
    std::vector<int> y(64);
    Launch(MissesABarrier, {1, 64, 4}, y.data());
    num_wrong += y != std::vector<int>(64, 5);
  }
  EXPECT_GT(num_wrong, 0);
}

// A buffer that is written again while others still read it.
__global__ void WritesTooEarly(int* y) {
  int* const shared = SharedAs<int>();
  for (int i = 0; i < 2; ++i) {
    if (threadIdx.x == 0) *shared = i;
    __syncthreads();
    y[threadIdx.x] += *shared;
  }
}

TEST(Simt, AWriteBeforeAllHaveReadGivesAWrongResultInSomeOrder) {
  int num_wrong = 0;
  for (int launch = 0; launch < 4; ++launch) {
    std::vector<int> y(64);
    Launch(WritesTooEarly, {1, 64, 4}, y.data());
    num_wrong += y != std::vector<int>(64, 1);
  }
  EXPECT_GT(num_wrong, 0);
}

__global__ void ReadsFreshShared(int* y) { *y = *SharedAs<int>(); }

TEST(Simt, SharedMemoryIsNotZero) {
  int y = 0;
  Launch(ReadsFreshShared, {1, 1, 4}, &y);
  EXPECT_EQ(y, -1);
}

__global__ void RecordsMode(int* eager, int* first) {
  if (threadIdx.x < 32 && *first < 0) *first = static_cast<int>(threadIdx.x);
  *eager = Mode().eager_copies ? 1 : 0;
}

TEST(Simt, KernelsThatTakeTurnsGetAllSchedules) {
  for (const int num_kernels : {1, 2, 4}) {
    std::set<std::pair<int, int>> seen;
    for (int i = 0; i < 16; ++i) {
      int eager = 0;
      int first = -1;
      Launch(RecordsMode, {1, 32}, &eager, &first);
      seen.insert({eager, first == 0 ? 0 : first == 31 ? 31 : 16});
      for (int other = 1; other < num_kernels; ++other)
        Launch(RecordsMode, {1, 32}, &eager, &first);
    }
    EXPECT_GE(seen.size(), 4U) << num_kernels;
  }
}

__global__ void LeavesLanesBehind() {
  if (threadIdx.x < 16) __syncwarp();
}
__global__ void MeetsInDifferentInstructions(int* y) {
  *y = threadIdx.x < 16 ? __shfl_sync(0xFFFFFFFFU, 1, 0)
                        : static_cast<int>(__ballot_sync(0xFFFFFFFFU, 1));
}
__global__ void LeavesThreadsBehindAtABarrier() {
  if (threadIdx.x < 32) {
    simt::NamedBarrier(1, 64);
  } else {
    __syncthreads();
  }
}
__global__ void WaitsForMemory(uint32_t* flag) {
  while (nibble::gpu::LoadAcquireDevice(flag) == 0) {
  }
}
__global__ void ShufflesWithoutItself() { __syncwarp(0xFFFEU); }
__global__ void Traps() { __trap(); }
__global__ void TakesTooMuchShared(int* y) { *y = SharedAs<int>()[0]; }

TEST(SimtDeathTest, ThreadsThatWaitInVainAreNamed) {
  EXPECT_DEATH(Launch(LeavesLanesBehind, {}), "wait for each other in vain.*__syncwarp");
  int y = 0;
  EXPECT_DEATH(Launch(MeetsInDifferentInstructions, {}, &y), "__ballot_sync");
  EXPECT_DEATH(Launch(LeavesThreadsBehindAtABarrier, {1, 64}), "NamedBarrierSync");
}

TEST(SimtDeathTest, ALoopThatNothingEndsIsFound) {
  uint32_t flag = 0;
  EXPECT_DEATH(Launch(WaitsForMemory, {}, &flag), "in vain.*LoadAcquire");
}

TEST(SimtDeathTest, MisuseIsFound) {
  EXPECT_DEATH(Launch(ShufflesWithoutItself, {}), "does not name its own lane");
  EXPECT_DEATH(Launch(Traps, {}), "block .0, 0, 0. thread .*__trap");
  int y = 0;
  EXPECT_DEATH(Launch(TakesTooMuchShared, {1, 1, 2}, &y), "less shared memory");
  EXPECT_DEATH(__syncthreads(), "on the host");
}

__global__ void WaitsForEachOther(uint32_t* own, uint32_t* other) {
  nibble::gpu::StoreReleaseSystem(own, 1);
  while (nibble::gpu::LoadAcquireSystem(other) == 0) {
  }
}

TEST(Simt, KernelsOfTwoHostThreadsWaitForEachOther) {
  uint32_t flags[2] = {};
  std::thread other([&] { Launch(WaitsForEachOther, {}, &flags[1], &flags[0]); });
  Launch(WaitsForEachOther, {}, &flags[0], &flags[1]);
  other.join();
}

// Threads that have ended are no longer waited for.
__global__ void SomeThreadsEnd(int* y) {
  if (threadIdx.x >= 40) return;
  int* const shared = SharedAs<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = shared[39 - threadIdx.x];
}

TEST(Simt, BarriersForgetThreadsThatEnded) {
  for (const Order order : kOrders) {
    const Scheduled scheduled(order, true);
    std::vector<int> y(40);
    Launch(SomeThreadsEnd, {1, 64, 160}, y.data());
    for (int i = 0; i < 40; ++i) EXPECT_EQ(y[static_cast<size_t>(i)], 39 - i);
  }
}

}  // namespace
}  // namespace simt
