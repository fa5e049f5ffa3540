// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/roofline.h"

#include <algorithm>
#include <atomic>

#include "bench/roofline_amx.h"
#include "bench/timing.h"

namespace nibble::bench {
namespace {

constexpr int64_t kBufferBytes = int64_t{512} << 20;
constexpr int64_t kIterations = 100'000;           // some 0.2 ms
constexpr int64_t kTileIterations = 4'000;         // the same
constexpr int64_t kReadBytes = int64_t{16} << 20;  // a stretch of the buffer per repetition
constexpr int64_t kRepetitions = 96;

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

template <typename Body>
Peak MeasurePeak(double work, const Body& body) {
  const Timing timing = Measure(0.0, kRepetitions, body);
  return {work / timing.best_s, work / timing.median_s};
}

// `loop` (thread index) on every thread.
template <typename Loop>
Peak MeasureOnAll(double work_per_thread, ThreadPool* pool, const Loop& loop) {
  const int64_t threads = pool->num_threads();
  return MeasurePeak(work_per_thread * static_cast<double>(threads), [&](int64_t) {
    pool->ParallelFor(threads, 1, [&](int64_t begin, int64_t) {
      g_sink.fetch_add(loop(begin), std::memory_order_relaxed);
    });
  });
}

}  // namespace

RooflineMeter::RooflineMeter(ThreadPool* pool)
    : pool_(pool),
      buffer_(kBufferBytes),
      tiles_(static_cast<size_t>(pool->num_threads() * amx::kTileBufferBytes)) {
  std::fill(buffer_.begin(), buffer_.end(), uint8_t{1});
  std::fill(tiles_.begin(), tiles_.end(), uint8_t{1});
}

Roofline RooflineMeter::Measure(Isa isa) {
  const Isa best = HostCpuFeatures().Best();
  const bool wide = isa >= Isa::kAvx512Vnni;
  const bool plain = best < Isa::kAvx2;
  const auto read = wide ? avx512vnni::ReadAll : plain ? PlainReadAll : avx2::ReadAll;
  const auto float_loop = wide ? avx512vnni::FloatLoop : plain ? PlainFloatLoop : avx2::FloatLoop;
  const auto int8_loop = wide ? avx512vnni::Int8Loop : plain ? PlainFloatLoop : avx2::Int8Loop;
  const double ops = 2.0 * 12.0 * static_cast<double>((wide ? 16 : plain ? 1 : 8) * kIterations);

  Roofline roofline;
  roofline.read = MeasurePeak(static_cast<double>(kReadBytes), [&](int64_t repetition) {
    const uint8_t* data = buffer_.data() + repetition * kReadBytes % kBufferBytes;
    pool_->ParallelFor(kReadBytes, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
      g_sink.fetch_add(read(data + begin, end - begin), std::memory_order_relaxed);
    });
  });
  roofline.float_fma = MeasureOnAll(ops, pool_, [&](int64_t) { return float_loop(kIterations); });
  roofline.int8 = MeasureOnAll((plain ? 1.0 : 4.0) * ops, pool_,
                               [&](int64_t) { return int8_loop(kIterations); });
  roofline.read_bytes_per_s = roofline.read.best;
  roofline.float_flop_per_s = roofline.float_fma.best;
  roofline.int8_op_per_s = roofline.int8.best;
  if (isa == Isa::kAmx) MeasureTiles(&roofline);
  return roofline;
}

void RooflineMeter::MeasureTiles(Roofline* roofline) {
  const double int8_ops = static_cast<double>(amx::kInt8OpsPerIteration * kTileIterations);
  roofline->amx_int8 =
      MeasureOnAll(int8_ops, pool_, [](int64_t) { return amx::Int8Loop(kTileIterations); });
  roofline->amx_int8_from_l2 = MeasureOnAll(int8_ops, pool_, [&](int64_t thread) {
    return amx::Int8LoadLoop(tiles_.data() + thread * amx::kTileBufferBytes, kTileIterations);
  });
  roofline->int8_op_per_s = roofline->amx_int8_from_l2.best;
  if (!HostCpuFeatures().amx_bf16) return;
  roofline->amx_bf16 =
      MeasureOnAll(static_cast<double>(amx::kBf16OpsPerIteration * kTileIterations), pool_,
                   [](int64_t) { return amx::Bf16Loop(kTileIterations); });
}

Roofline MeasureRoofline(Isa isa, ThreadPool* pool) { return RooflineMeter(pool).Measure(isa); }

}  // namespace nibble::bench
