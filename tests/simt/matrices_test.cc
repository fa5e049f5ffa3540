// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Matrix instructions: kernels that use results or change operands too early, or use what CUDA does
// not define. What they compute: tests/kernels/device/cuda.
#include <cstdint>
#include <vector>

#include "base/cuda/shared_memory.cuh"
#include "kernels/device/ldmatrix.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/wgmma.cuh"
#include "tests/simt/launch.h"

namespace nibble::kernels::cuda {
namespace {

using gpu::SharedAs;
using simt::Launch;
using simt::Order;
using simt::Scheduled;

constexpr size_t kSharedBytes = 2048;
constexpr int kPerStep = 32;  // ones times ones

enum class Way {
  kRight,
  kReadsEarly,      // D before the wait
  kWaitsTooLittle,  // for a group too few
  kChangesA,        // while it is read
  kChangesB,
  kNoFence,
  kNoCommit,
  kNoWait,
  kOddDescriptor,
  kWarpsDisagree,
  kOneWarpMissing,
};

// D [64, 8] = 2 steps of A * B^T, all ones.
__global__ void Multiplies(int* y, Way way) {
  auto* const shared = SharedAs<uint8_t>();
  if (threadIdx.x == 0) {
    for (size_t i = 0; i < 1024; ++i) shared[i] = 1;
  }
  __syncthreads();
  int d[4] = {};
  uint32_t a[4];
  for (uint32_t& word : a) word = 0x01010101;
  uint64_t descriptor = SwizzledDescriptor128(shared);
  if (way == Way::kOddDescriptor) descriptor += 1;
  if (way == Way::kWarpsDisagree && threadIdx.x == 77) descriptor += 2;
  if (way == Way::kOneWarpMissing && threadIdx.x >= 96) return;
  if (way != Way::kNoFence) WgmmaFence();
  WgmmaS8<8>(d, a, descriptor, false);
  WgmmaCommit();
  WgmmaFence();
  WgmmaS8<8>(d, a, descriptor, true);
  if (way == Way::kChangesA) a[0] = 0;
  if (way == Way::kReadsEarly) y[threadIdx.x] = d[0];
  if (way != Way::kNoCommit) WgmmaCommit();
  if (way == Way::kChangesB && threadIdx.x == 127) {
    for (size_t i = 0; i < 1024; ++i) shared[i] = 0;
  }
  if (way == Way::kNoWait) return;
  if (way == Way::kWaitsTooLittle) {
    WgmmaWait<1>();
    y[threadIdx.x] = d[0];
  }
  WgmmaWait<0>();
  if (way != Way::kReadsEarly && way != Way::kWaitsTooLittle) y[threadIdx.x] = d[0];
}

std::vector<int> RunMultiplies(bool eager, Way way) {
  const Scheduled scheduled(Order::kFalling, eager);
  std::vector<int> y(128);
  Launch(Multiplies, {1, 128, kSharedBytes}, y.data(), way);
  return y;
}

TEST(Wgmma, ResultsAreThereAfterTheWait) {
  const std::vector<int> right(128, 2 * kPerStep);
  EXPECT_EQ(RunMultiplies(true, Way::kRight), right);
  EXPECT_EQ(RunMultiplies(false, Way::kRight), right);
  // Neither what D was nor what it will be.
  for (const int early : RunMultiplies(false, Way::kReadsEarly)) {
    EXPECT_TRUE(early != 0 && early != kPerStep && early != 2 * kPerStep) << early;
  }
  EXPECT_NE(RunMultiplies(false, Way::kWaitsTooLittle), right);
}

TEST(Wgmma, OperandsAreReadLate) {
  const std::vector<int> right(128, 2 * kPerStep);
  EXPECT_NE(RunMultiplies(false, Way::kChangesA), right);
  EXPECT_NE(RunMultiplies(false, Way::kChangesB), right);
}

TEST(WgmmaDeathTest, MisuseIsFound) {
  for (const bool eager : {false, true}) {
    EXPECT_DEATH(RunMultiplies(eager, Way::kNoFence), "without WgmmaFence");
    EXPECT_DEATH(RunMultiplies(eager, Way::kNoCommit), "not committed");
    EXPECT_DEATH(RunMultiplies(eager, Way::kNoWait), "did not wait for");
    EXPECT_DEATH(RunMultiplies(eager, Way::kOddDescriptor), "descriptor that Swizzled");
    EXPECT_DEATH(RunMultiplies(eager, Way::kWarpsDisagree), "do not agree");
    EXPECT_DEATH(RunMultiplies(eager, Way::kOneWarpMissing), "in vain.*WgmmaS8");
  }
}

__global__ void DescribesInsideOfAnAtom(uint64_t* y) {
  *y = SwizzledDescriptor128(SharedAs<uint8_t>() + 128);
}
__global__ void LoadsFromAnOddAddress() {
  uint32_t r[4];
  LoadMatrixX4(r, SharedAs<uint8_t>() + threadIdx.x * 24);
}
__global__ void LoadsFromDeviceMemory(const uint4* rows) {
  uint32_t r[4];
  LoadMatrixX4(r, rows + threadIdx.x);
}
__global__ void HalfAWarpMultiplies() {
  int d[4] = {};
  const uint32_t a[4] = {};
  const uint32_t b[2] = {};
  if (threadIdx.x < 16) MmaS8(d, a, b);
}

TEST(MatricesDeathTest, MisuseIsFound) {
  uint64_t y = 0;
  EXPECT_DEATH(Launch(DescribesInsideOfAnAtom, {1, 1, kSharedBytes}, &y), "into an atom");
  EXPECT_DEATH(Launch(LoadsFromAnOddAddress, {1, 32, kSharedBytes}), "not aligned to 16");
  const std::vector<uint4> rows(32);
  EXPECT_DEATH(Launch(LoadsFromDeviceMemory, {1, 32, kSharedBytes}, rows.data()),
               "not of the block's shared memory");
  EXPECT_DEATH(Launch(HalfAWarpMultiplies, {}), "in vain.*MmaS8");
}

}  // namespace
}  // namespace nibble::kernels::cuda
