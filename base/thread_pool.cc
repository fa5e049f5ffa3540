// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>

#include "base/check.h"

namespace nibble {
namespace {

// About 5-10 us: longer than the gap between two kernels of a layer, far shorter than a scheduler
// time slice.
constexpr int kSpins = 2000;

inline void Pause() { __builtin_ia32_pause(); }

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  NIBBLE_CHECK_GE(num_threads, 1);
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { WorkerMain(); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

int ThreadPool::HostThreads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  return std::max(1, CPU_COUNT(&set));
}

void ThreadPool::Dispatch(int64_t count, int64_t grain, const void* context, BodyFunction body) {
  NIBBLE_CHECK_GE(grain, 1);
  if (count <= 0) return;
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      body(context, begin, std::min(count, begin + grain));
    }
    return;
  }
  NIBBLE_CHECK(!busy_.exchange(true, std::memory_order_acquire));
  context_ = context;
  body_ = body;
  count_ = count;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  num_active_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  TakePieces();
  for (int spin = 0; num_active_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins) {
      Pause();
      continue;
    }
    const int active = num_active_.load(std::memory_order_acquire);
    if (active != 0) num_active_.wait(active, std::memory_order_acquire);
  }
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::TakePieces() {
  for (;;) {
    const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    body_(context_, begin, std::min(count_, begin + grain_));
  }
}

void ThreadPool::WorkerMain() {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; epoch_.load(std::memory_order_acquire) == seen; ++spin) {
      if (spin < kSpins) {
        Pause();
      } else {
        epoch_.wait(seen, std::memory_order_acquire);
      }
    }
    // Dispatch waits for every worker before the next loop, so the epoch moved by exactly one.
    ++seen;
    if (stopping_.load(std::memory_order_relaxed)) return;
    TakePieces();
    if (num_active_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_active_.notify_one();
  }
}

}  // namespace nibble
