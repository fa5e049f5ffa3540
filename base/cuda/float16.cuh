// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// bfloat16 and IEEE half in device code: storage types, arithmetic is done in float. The bits of
// base/float16.h, but that a NaN becomes 0x7FFF.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::gpu {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

__device__ __forceinline__ float ToFloat(Bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float ToFloat(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

// Round to nearest even; what is too large becomes infinite.
__device__ __forceinline__ Bf16 ToBf16(float value) {
  Bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}
__device__ __forceinline__ Half ToHalf(float value) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

// Two in a register, as matrix instructions take them: `low` in bits 0-15, first in memory.
__device__ __forceinline__ uint32_t PackBf16x2(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
__device__ __forceinline__ uint32_t PackHalfx2(float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
__device__ __forceinline__ float2 UnpackBf16x2(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000U));
}
__device__ __forceinline__ float2 UnpackHalfx2(uint32_t pair) {
  return make_float2(ToFloat(Half{static_cast<uint16_t>(pair)}),
                     ToFloat(Half{static_cast<uint16_t>(pair >> 16)}));
}

}  // namespace nibble::gpu
