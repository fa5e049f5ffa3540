// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the machine can do at best, measured by loops that do nothing else, in the same run as what
// they are compared with.
#pragma once

#include <cstdint>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/thread_pool.h"

namespace nibble::bench {

// Rates per second: the best of many short stretches, which is what the machine does while nobody
// else has its cores, and their median.
struct Peak {
  double best = 0.0;
  double median = 0.0;
};

struct Roofline {
  double read_bytes_per_s = 0.0;  // sum over a buffer past every cache
  double float_flop_per_s = 0.0;  // fused multiply-adds between registers
  // Products that W4A8 and W8A8 kernels of the instruction set are made of: vpmaddubsw + vpaddw or
  // vpdpbusd between registers; AMX: 2 x 2 tiles whose operands come from the second-level cache.
  double int8_op_per_s = 0.0;
  // Of all loops, those with tiles only for Isa::kAmx.
  Peak read;
  Peak float_fma;
  Peak int8;
  Peak amx_int8;          // between tile registers
  Peak amx_int8_from_l2;  // operands loaded from the second-level cache
  Peak amx_bf16;          // between tile registers
};

// The same of a device; what its kernels are measured against.
struct DevicePeaks {
  double read_bytes_per_s = 0.0;  // of its memory
  double int8_op_per_s = 0.0;     // 2 a product
  double bf16_op_per_s = 0.0;
};

// Owns the buffers that the loops read. `pool` must outlive it.
class RooflineMeter {
 public:
  explicit RooflineMeter(ThreadPool* pool);

  // Takes about a tenth of a second: short enough to pair every figure with one. Isa::kRef is
  // measured with the loops of kAvx2 where the host has them, else with plain ones.
  Roofline Measure(Isa isa);

 private:
  void MeasureTiles(Roofline* roofline);

  ThreadPool* pool_;
  AlignedBuffer<uint8_t> buffer_;
  AlignedBuffer<uint8_t> tiles_;  // one part per thread, in its second-level cache
};

// For callers that need it once.
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
