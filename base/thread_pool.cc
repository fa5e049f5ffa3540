// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <new>

#include "base/cgroup.h"
#include "base/check.h"

namespace nibble {
namespace {

// Longer than the gap between two kernels of a layer, far shorter than a scheduler time slice. A
// time and no number of pauses: one takes some 10 to 140 cycles, depending on the CPU.
constexpr std::chrono::microseconds kSpinTime(10);
constexpr int kPausesPerLook = 8;  // at the clock, which costs some 20 ns

// True as soon as done(), false when it is not for kSpinTime.
template <typename Done>
bool SpinUntil(const Done& done) {
  if (done()) return true;
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      __builtin_ia32_pause();
      if (done()) return true;
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

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
  const bool known = sched_getaffinity(0, sizeof(set), &set) == 0;
  const int allowed =
      known ? CPU_COUNT(&set) : static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, std::min(allowed, ReadCgroupLimits().num_cpus));
}

void ThreadPool::Dispatch(int64_t count, int64_t grain, const void* context, BodyFunction body) {
  NIBBLE_CHECK_GE(grain, 1);
  NIBBLE_CHECK(!busy_.exchange(true, std::memory_order_acquire));
  context_ = context;
  body_ = body;
  count_ = count;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  if (workers_.empty() || count <= grain) {
    TakePieces();
  } else {
    num_active_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    TakePieces();
    const auto all_left = [this] { return num_active_.load(std::memory_order_acquire) == 0; };
    while (!SpinUntil(all_left)) {
      const int active = num_active_.load(std::memory_order_acquire);
      if (active != 0) num_active_.wait(active, std::memory_order_acquire);
    }
  }
  const bool out_of_memory = out_of_memory_.exchange(false, std::memory_order_relaxed);
  busy_.store(false, std::memory_order_release);
  if (out_of_memory) throw std::bad_alloc();
}

void ThreadPool::TakePieces() noexcept {
  try {
    for (;;) {
      const int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= count_) return;
      body_(context_, begin, std::min(count_, begin + grain_));
    }
  } catch (const std::bad_alloc&) {
    out_of_memory_.store(true, std::memory_order_relaxed);  // seen by Dispatch through num_active_
    next_.store(count_, std::memory_order_relaxed);
  }
}

void ThreadPool::WorkerMain() {
  uint32_t seen = 0;
  for (;;) {
    const auto next_loop = [this, seen] { return epoch_.load(std::memory_order_acquire) != seen; };
    while (!SpinUntil(next_loop)) epoch_.wait(seen, std::memory_order_acquire);
    // Dispatch waits for every worker before the next loop, so the epoch moved by exactly one.
    ++seen;
    if (stopping_.load(std::memory_order_relaxed)) return;
    TakePieces();
    if (num_active_.fetch_sub(1, std::memory_order_acq_rel) == 1) num_active_.notify_one();
  }
}

}  // namespace nibble
