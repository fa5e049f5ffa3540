// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's form of the header of the same name.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/float16.h"

namespace nibble::gpu {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline float ToFloat(Bf16 value) { return nibble::ToFloat(BFloat16{value.bits}); }
inline float ToFloat(Half value) { return nibble::ToFloat(Float16{value.bits}); }
inline Bf16 ToBf16(float value) {
  return {value != value ? uint16_t{0x7FFF} : ToBFloat16(value).bits};
}
inline Half ToHalf(float value) {
  return {value != value ? uint16_t{0x7FFF} : ToFloat16(value).bits};
}
inline uint32_t PackBf16x2(float low, float high) {
  return ToBf16(low).bits | static_cast<uint32_t>(ToBf16(high).bits) << 16;
}
inline uint32_t PackHalfx2(float low, float high) {
  return ToHalf(low).bits | static_cast<uint32_t>(ToHalf(high).bits) << 16;
}
inline float2 UnpackBf16x2(uint32_t pair) {
  return {ToFloat(Bf16{static_cast<uint16_t>(pair)}),
          ToFloat(Bf16{static_cast<uint16_t>(pair >> 16)})};
}
inline float2 UnpackHalfx2(uint32_t pair) {
  return {ToFloat(Half{static_cast<uint16_t>(pair)}),
          ToFloat(Half{static_cast<uint16_t>(pair >> 16)})};
}

}  // namespace nibble::gpu
