// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the loops that measure products multiply. Power, and so clocks, depend on how many bits
// change: bits of no pattern, and bf16 of both signs between 2^-7 and 2, whose sums stay finite.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace nibble::bench {

// Register `i` of int8 (sums in int) or of bf16 (in float).
template <typename Sum>
__device__ __forceinline__ uint32_t PeakOperand(uint32_t i) {
  uint32_t bits = (i + 1) * 0x9E3779B1U;
  bits ^= bits >> 15;
  bits *= 0x85EBCA6BU;
  bits ^= bits >> 13;
  return std::is_same_v<Sum, float> ? (bits & 0x83FF83FFU) | 0x3C003C00U : bits;
}

}  // namespace nibble::bench
