// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Loops of roofline.h for Isa::kAmx. Memory and float arithmetic have the limits of AVX-512.
#pragma once

#include <cstdint>

namespace nibble::bench::amx {

// Each returns something that depends on all it did. One iteration is 4 tile products.
int64_t Int8Loop(int64_t iterations);  // between registers
int64_t Bf16Loop(int64_t iterations);  // the same
// 2 x 2 tiles of sums, all operands loaded from a buffer of kTileBufferBytes (64-aligned, per
// thread): what a matrix product can have of the unit when its operands come from that cache.
int64_t Int8LoadLoop(const uint8_t* buffer, int64_t iterations);

inline constexpr int64_t kTileBufferBytes = int64_t{1} << 20;  // in the second-level cache
// Multiplications and additions of one iteration.
inline constexpr int64_t kInt8OpsPerIteration = 4 * 2 * 16 * 16 * 64;
inline constexpr int64_t kBf16OpsPerIteration = 4 * 2 * 16 * 16 * 32;

}  // namespace nibble::bench::amx
