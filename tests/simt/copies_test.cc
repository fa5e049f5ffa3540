// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Asynchronous copies: kernels that wait for too little, or write too early, give wrong results in
// the lazy or the eager mode; those that CUDA does not define end the test.
#include <cstdint>
#include <vector>

#include "base/cuda/async_copy.cuh"
#include "base/cuda/barrier.cuh"
#include "tests/simt/launch.h"

namespace simt {
namespace {

using nibble::gpu::Barrier;
using nibble::gpu::SharedAs;
namespace gpu = nibble::gpu;

constexpr uint32_t kRubbish = 0xFFFFFFFFU;

struct alignas(128) Shared {
  uint4 values[2];
  Barrier barrier;
};

enum class Wait { kAll, kTooFew, kNone };

__global__ void CopiesTwice(const uint4* x, uint32_t* y, Wait wait) {
  auto* const shared = SharedAs<Shared>();
  gpu::CopyAsync16(&shared->values[0], x);
  gpu::CopyAsyncCommit();
  gpu::CopyAsync16(&shared->values[1], x + 1);
  gpu::CopyAsyncCommit();
  if (wait == Wait::kAll) gpu::CopyAsyncWait<0>();
  if (wait == Wait::kTooFew) gpu::CopyAsyncWait<1>();
  y[0] = shared->values[0].x;
  y[1] = shared->values[1].x;
}

std::vector<uint32_t> RunCopiesTwice(bool eager, Wait wait) {
  const Scheduled scheduled(Order::kRising, eager);
  const std::vector<uint4> x = {{1, 2, 3, 4}, {5, 6, 7, 8}};
  std::vector<uint32_t> y(2);
  Launch(CopiesTwice, {1, 1, sizeof(Shared)}, x.data(), y.data(), wait);
  return y;
}

TEST(CopyAsync, ArrivesWhenItsGroupIsWaitedFor) {
  EXPECT_EQ(RunCopiesTwice(false, Wait::kAll), (std::vector<uint32_t>{1, 5}));
  EXPECT_EQ(RunCopiesTwice(true, Wait::kAll), (std::vector<uint32_t>{1, 5}));
  EXPECT_EQ(RunCopiesTwice(false, Wait::kTooFew), (std::vector<uint32_t>{1, kRubbish}));
  EXPECT_EQ(RunCopiesTwice(false, Wait::kNone), (std::vector<uint32_t>{kRubbish, kRubbish}));
}

// The next tile overwrites the one that other threads still read.
__global__ void CopiesTooEarly(const uint4* x, uint32_t* y) {
  auto* const shared = SharedAs<Shared>();
  uint32_t sum = 0;
  for (int tile = 0; tile < 2; ++tile) {
    if (threadIdx.x == 0) gpu::CopyAsync16(&shared->values[0], x + tile);
    gpu::CopyAsyncCommit();
    gpu::CopyAsyncWait<0>();
    __syncthreads();
    sum += shared->values[0].x;
  }
  y[threadIdx.x] = sum;
}

TEST(CopyAsync, EagerCopiesOverwriteWhatIsStillRead) {
  const Scheduled scheduled(Order::kRising, true);
  const std::vector<uint4> x = {{1, 0, 0, 0}, {5, 0, 0, 0}};
  std::vector<uint32_t> y(32);
  Launch(CopiesTooEarly, {1, 32, sizeof(Shared)}, x.data(), y.data());
  EXPECT_NE(y, std::vector<uint32_t>(32, 6));
}

__global__ void WaitsWithoutCommit(const uint4* x) {
  gpu::CopyAsync16(&SharedAs<Shared>()->values[0], x);
  gpu::CopyAsyncWait<0>();
}
__global__ void CopiesFromAnOddAddress(const uint8_t* x) {
  gpu::CopyAsync16(&SharedAs<Shared>()->values[0], x + 8);
}
__global__ void CopiesToDeviceMemory(uint4* x) { gpu::CopyAsync16(x, x + 1); }

TEST(CopyAsyncDeathTest, MisuseIsFound) {
  std::vector<uint4> x(2);
  EXPECT_DEATH(Launch(WaitsWithoutCommit, {1, 1, sizeof(Shared)}, x.data()), "not committed");
  EXPECT_DEATH(Launch(CopiesFromAnOddAddress, {1, 1, sizeof(Shared)},
                      reinterpret_cast<const uint8_t*>(x.data())),
               "not aligned to 16");
  EXPECT_DEATH(Launch(CopiesToDeviceMemory, {1, 1, sizeof(Shared)}, x.data()),
               "not of the block's shared memory");
}

enum class Bulk {
  kRight,
  kNoWait,         // reads at once
  kTooManyBytes,   // expects more than come
  kTooFewBytes,    // expects less
  kOddSize,        // not a multiple of 16
  kNoBarrier,      // never initialized
  kNobodyWaits,    // the block ends before
  kTooManyArrive,  // of one that counts one
};

__global__ void CopiesInBulk(const uint4* x, uint32_t* y, Bulk bulk) {
  auto* const shared = SharedAs<Shared>();
  Barrier* const barrier = &shared->barrier;
  if (bulk != Bulk::kNoBarrier) gpu::BarrierInit(barrier, 1);
  const uint32_t bytes = bulk == Bulk::kOddSize ? 24 : 32;
  gpu::BulkCopy(shared->values, x, bytes, barrier);
  gpu::BarrierArriveExpectBytes(barrier, bulk == Bulk::kTooManyBytes  ? bytes + 16
                                         : bulk == Bulk::kTooFewBytes ? bytes - 16
                                                                      : bytes);
  if (bulk == Bulk::kTooManyArrive) gpu::BarrierArriveExpectBytes(barrier, bytes);
  if (bulk == Bulk::kNobodyWaits) return;
  if (bulk != Bulk::kNoWait) gpu::BarrierWait(barrier, 0);
  y[0] = shared->values[1].x;
  if (bulk == Bulk::kNoWait) gpu::BarrierWait(barrier, 0);
}

uint32_t RunInBulk(bool eager, Bulk bulk) {
  const Scheduled scheduled(Order::kRising, eager);
  const std::vector<uint4> x = {{1, 2, 3, 4}, {5, 6, 7, 8}};
  uint32_t y = 0;
  Launch(CopiesInBulk, {1, 1, sizeof(Shared)}, x.data(), &y, bulk);
  return y;
}

TEST(BulkCopy, ArrivesWhenItsBarrierIsWaitedFor) {
  EXPECT_EQ(RunInBulk(true, Bulk::kRight), 5U);
  EXPECT_EQ(RunInBulk(false, Bulk::kRight), 5U);
  EXPECT_EQ(RunInBulk(false, Bulk::kNoWait), kRubbish);
}

TEST(BulkCopyDeathTest, MisuseIsFound) {
  for (const bool eager : {false, true}) {
    EXPECT_DEATH(RunInBulk(eager, Bulk::kTooManyBytes), "in vain.*bytes are missing");
    EXPECT_DEATH(RunInBulk(eager, Bulk::kTooFewBytes), "more bytes were copied");
    EXPECT_DEATH(RunInBulk(eager, Bulk::kOddSize), "not a multiple of 16");
    EXPECT_DEATH(RunInBulk(eager, Bulk::kNoBarrier), "not a barrier");
  }
  EXPECT_DEATH(RunInBulk(false, Bulk::kTooManyArrive), "more threads arrive");
  EXPECT_DEATH(RunInBulk(false, Bulk::kNobodyWaits), "nobody waited for");
}

// Waits for the parity of the phase before: returns at once, by the rules.
__global__ void WaitsForTheWrongPhase(const uint4* x, uint32_t* y) {
  auto* const shared = SharedAs<Shared>();
  gpu::BarrierInit(&shared->barrier, 1);
  gpu::BarrierArriveExpectBytes(&shared->barrier, 16);
  gpu::BulkCopy(shared->values, x, 16, &shared->barrier);
  gpu::BarrierWait(&shared->barrier, 1);
  *y = shared->values[0].x;
  gpu::BarrierWait(&shared->barrier, 0);
}

TEST(BulkCopy, AWaitForTheWrongPhaseIsNone) {
  const Scheduled scheduled(Order::kRising, false);
  const uint4 x = {1, 2, 3, 4};
  uint32_t y = 0;
  Launch(WaitsForTheWrongPhase, {1, 1, sizeof(Shared)}, &x, &y);
  EXPECT_EQ(y, kRubbish);
}

__global__ void ArrivalsAreMissing() {
  auto* const shared = SharedAs<Shared>();
  if (threadIdx.x == 0) gpu::BarrierInit(&shared->barrier, 32);
  __syncthreads();
  if (threadIdx.x > 0) gpu::BarrierArrive(&shared->barrier);
  gpu::BarrierWait(&shared->barrier, 0);
}

__global__ void NamedBarrierOfOddCount() { gpu::NamedBarrierSync<1>(48); }
__global__ void NamedBarrierCountsDiffer() {
  if (threadIdx.x < 32) {
    gpu::NamedBarrierSync<1>(64);
  } else {
    gpu::NamedBarrierSync<1>(96);
  }
}

TEST(BarrierDeathTest, MisuseIsFound) {
  EXPECT_DEATH(Launch(ArrivalsAreMissing, {1, 32, sizeof(Shared)}), "arrivals are missing");
  EXPECT_DEATH(Launch(NamedBarrierOfOddCount, {1, 64}), "not a multiple of a warp");
  EXPECT_DEATH(Launch(NamedBarrierCountsDiffer, {1, 64}), "barrier 1 of");
}

__global__ void TensorCopyToAnOddAddress(const __grid_constant__ gpu::TensorMap map) {
  auto* const shared = SharedAs<Shared>();
  gpu::BarrierInit(&shared->barrier, 1);
  gpu::TensorCopy2d(&shared->values[1], &map, 0, 0, &shared->barrier);
}

TEST(TensorCopyDeathTest, MisuseIsFound) {
  alignas(16) static const uint8_t matrix[64] = {};
  const auto map = gpu::MakeTensorMap2d({.global = matrix,
                                         .inner = 16,
                                         .outer = 4,
                                         .row_stride_bytes = 16,
                                         .box_inner = 16,
                                         .box_outer = 1,
                                         .swizzle_128 = false});
  ASSERT_TRUE(map.ok());
  EXPECT_DEATH(Launch(TensorCopyToAnOddAddress, {1, 1, sizeof(Shared)}, *map),
               "not aligned to 128");
  EXPECT_DEATH(Launch(TensorCopyToAnOddAddress, {1, 1, sizeof(Shared)}, gpu::TensorMap{}),
               "not a tensor map");
}

}  // namespace
}  // namespace simt
