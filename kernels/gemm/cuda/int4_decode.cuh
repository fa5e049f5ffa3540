// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Four 4-bit codes to four int8 weights in one register: (u * factor + offset) ^ 0x80 in every
// byte.
//
// No byte of the sum leaves 0..255, so that none borrows from its neighbour whatever the sign of
// the factor: arithmetic modulo 2^32 is exact whatever happens in between.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::kernels::cuda {

struct Int4Decode {
  uint32_t factor;
  uint32_t offset;
};
// (u - 8) * S for S in -15..16: offset 128 - 8 S in every byte.
__device__ __forceinline__ Int4Decode FoldedDecode(int scale) {
  const auto factor = static_cast<uint32_t>(scale);
  return {factor, 0x80808080U - factor * 0x08080808U};
}
// u - zero.
__device__ __forceinline__ Int4Decode ExactDecode(uint32_t zero) {
  return {1, 0x80808080U - zero * 0x01010101U};
}

// The codes in the low and in the high halves of a word. With kFolded = false the factor is 1.
template <bool kFolded>
__device__ __forceinline__ uint32_t DecodeNibbles(uint32_t nibbles, const Int4Decode& decode) {
  return ((kFolded ? nibbles * decode.factor : nibbles) + decode.offset) ^ 0x80808080U;
}
template <bool kFolded>
__device__ __forceinline__ uint32_t DecodeLow(uint32_t word, const Int4Decode& decode) {
  return DecodeNibbles<kFolded>(word & 0x0F0F0F0FU, decode);
}
template <bool kFolded>
__device__ __forceinline__ uint32_t DecodeHigh(uint32_t word, const Int4Decode& decode) {
  return DecodeNibbles<kFolded>(word >> 4 & 0x0F0F0F0FU, decode);
}

}  // namespace nibble::kernels::cuda
