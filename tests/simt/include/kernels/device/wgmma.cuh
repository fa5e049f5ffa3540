// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's form of the header of the same name.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/shared_memory.cuh"
#include "tests/simt/warpgroup.h"

namespace nibble::kernels::cuda {

inline uint64_t SwizzledDescriptor128(const void* shared) { return simt::WgmmaDescriptor(shared); }
inline void WgmmaFence() { simt::WgmmaFence(); }
inline void WgmmaCommit() { simt::WgmmaCommit(); }
template <int kPending>
void WgmmaWait() {
  static_assert(kPending >= 0 && kPending <= 7);
  simt::WgmmaWait(kPending);
}
inline void WgmmaFenceOperand(int&) {}
inline void WgmmaFenceOperand(float&) {}

template <int kCount>
void RegistersIncrease() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
  simt::WarpgroupMeeting("setmaxnreg.inc", nullptr, [](void* const*) {});
}
template <int kCount>
void RegistersDecrease() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
  simt::WarpgroupMeeting("setmaxnreg.dec", nullptr, [](void* const*) {});
}

template <int kN>
void WgmmaS8(int (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b_descriptor, bool accumulate) {
  static_assert(kN == 8 || kN == 16 || kN == 32 || kN == 64 || kN == 96 || kN == 128 || kN == 192 ||
                kN == 256);
  simt::WgmmaS8(kN, d, a, b_descriptor, accumulate);
}
template <int kN>
void WgmmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b_descriptor, bool accumulate) {
  static_assert(kN == 128);
  simt::WgmmaBf16(kN, d, a, b_descriptor, accumulate);
}

}  // namespace nibble::kernels::cuda
