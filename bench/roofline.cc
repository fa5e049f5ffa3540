// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "base/aligned_buffer.h"

namespace nibble::bench {
namespace {

constexpr int64_t kBufferBytes = int64_t{512} << 20;
constexpr int64_t kIterations = 100'000;           // some 0.2 ms
constexpr int64_t kReadBytes = int64_t{16} << 20;  // a stretch of the buffer per repetition
constexpr int kRepetitions = 96;

std::atomic<int64_t> g_sink{0};  // keeps results alive

int64_t PlainReadAll(const uint8_t* data, int64_t size) {
  int64_t sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += data[i];
  return sum;
}
int64_t PlainFloatLoop(int64_t iterations) {
  float acc[12] = {};
  for (int64_t i = 0; i < iterations; ++i) {
    for (float& a : acc) a = a * 0.5F + 0.5F;
  }
  return static_cast<int64_t>(acc[0] + acc[11]);
}

// The best of many short stretches: what the machine does while nobody else has its cores.
template <typename Body>
double BestSeconds(const Body& body) {
  double best = 1e9;
  for (int i = 0; i < kRepetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body(i);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count());
  }
  return best;
}

}  // namespace

Roofline MeasureRoofline(Isa isa, ThreadPool* pool) {
  const Isa best = HostCpuFeatures().Best();
  const bool wide = isa >= Isa::kAvx512Vnni;
  const bool plain = best < Isa::kAvx2;
  const auto read = wide ? avx512vnni::ReadAll : plain ? PlainReadAll : avx2::ReadAll;
  const auto float_loop = wide ? avx512vnni::FloatLoop : plain ? PlainFloatLoop : avx2::FloatLoop;
  const auto int8_loop = wide ? avx512vnni::Int8Loop : plain ? PlainFloatLoop : avx2::Int8Loop;
  const int64_t lanes = wide ? 16 : plain ? 1 : 8;
  const int64_t threads = pool->num_threads();

  AlignedBuffer<uint8_t> buffer(kBufferBytes);
  std::fill(buffer.begin(), buffer.end(), uint8_t{1});
  const double read_s = BestSeconds([&](int repetition) {
    const uint8_t* data = buffer.data() + repetition * kReadBytes % kBufferBytes;
    pool->ParallelFor(kReadBytes, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
      g_sink.fetch_add(read(data + begin, end - begin), std::memory_order_relaxed);
    });
  });
  const auto compute = [&](int64_t (*loop)(int64_t)) {
    return BestSeconds([&](int) {
      pool->ParallelFor(threads, 1, [&](int64_t, int64_t) {
        g_sink.fetch_add(loop(kIterations), std::memory_order_relaxed);
      });
    });
  };
  const double ops = 2.0 * 12.0 * static_cast<double>(lanes * threads * kIterations);
  return {.read_bytes_per_s = static_cast<double>(kReadBytes) / read_s,
          .float_flop_per_s = ops / compute(float_loop),
          .int8_op_per_s = (plain ? 1.0 : 4.0) * ops / compute(int8_loop)};
}

}  // namespace nibble::bench
