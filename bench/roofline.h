// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the machine can do at best, measured by loops that do nothing else, in the same run as what
// they are compared with.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "base/thread_pool.h"

namespace nibble::bench {

struct Roofline {
  double read_bytes_per_s;  // sum over a buffer past every cache
  double float_flop_per_s;  // fused multiply-adds between registers
  double int8_op_per_s;     // vpdpbusd, or vpmaddubsw + vpaddw, between registers
};

// Takes about half a second. Isa::kRef is measured with the loops of kAvx2 where the host has them,
// else with plain ones.
Roofline MeasureRoofline(Isa isa, ThreadPool* pool);

// The loops. Each returns something that depends on all it did.
namespace avx2 {
int64_t ReadAll(const uint8_t* data, int64_t size);
int64_t FloatLoop(int64_t iterations);  // 12 accumulators of 8 lanes
int64_t Int8Loop(int64_t iterations);   // 12 accumulators of 32 products
}  // namespace avx2
namespace avx512vnni {
int64_t ReadAll(const uint8_t* data, int64_t size);
int64_t FloatLoop(int64_t iterations);  // 12 accumulators of 16 lanes
int64_t Int8Loop(int64_t iterations);   // 12 accumulators of 64 products
}  // namespace avx512vnni

}  // namespace nibble::bench
