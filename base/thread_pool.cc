// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <span>
#include <utility>

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

// A mask that cannot be had, because the CPU is gone or not this process's, changes nothing.
void BindThread(int cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, std::vector<int> cpus)
    : cpus_(std::move(cpus)), shares_(new Share[static_cast<size_t>(std::max(1, num_threads))]) {
  NIBBLE_CHECK_GE(num_threads, 1);
  if (!cpus_.empty()) NIBBLE_CHECK_EQ(cpus_.size(), static_cast<size_t>(num_threads));
  CPU_ZERO(&cpus_of_maker_);
  if (sched_getaffinity(0, sizeof(cpus_of_maker_), &cpus_of_maker_) != 0) CPU_ZERO(&cpus_of_maker_);
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this, i] { WorkerMain(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(2, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::BindCaller() const {
  if (!cpus_.empty()) BindThread(cpus_[0]);
}

void ThreadPool::UnbindCaller() const {
  if (cpus_.empty() || CPU_COUNT(&cpus_of_maker_) == 0) return;
  sched_setaffinity(0, sizeof(cpus_of_maker_), &cpus_of_maker_);
}

std::vector<int> ThreadPool::CpusToBind(int num_threads) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0 || CPU_COUNT(&set) != num_threads) return {};
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
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
  const int64_t num_pieces = count / grain + (count % grain != 0 ? 1 : 0);
  const int64_t num_shares = num_threads();
  for (int64_t i = 0; i < num_shares; ++i) {
    shares_[static_cast<size_t>(i)].next.store(num_pieces * i / num_shares,
                                               std::memory_order_relaxed);
    shares_[static_cast<size_t>(i)].end = num_pieces * (i + 1) / num_shares;
  }
  if (workers_.empty() || num_pieces <= 1) {
    TakePieces(0);
  } else {
    const uint32_t epoch = (epoch_.load(std::memory_order_relaxed) + 1) | 1;
    epoch_.store(epoch, std::memory_order_release);
    epoch_.notify_all();
    TakePieces(0);
    WaitForWorkers(epoch);
  }
  const bool out_of_memory = out_of_memory_.exchange(false, std::memory_order_relaxed);
  busy_.store(false, std::memory_order_release);
  if (out_of_memory) throw std::bad_alloc();
}

// When no piece is left to take.
void ThreadPool::WaitForWorkers(uint32_t epoch) {
  const std::span<Share> workers(&shares_[1], workers_.size());
  const auto has_begun = [epoch](const Share& worker) {
    const uint32_t begun = worker.begun.load(std::memory_order_acquire);
    return begun == epoch || begun == epoch + 1;
  };
  // Seldom, as it takes the epoch's cache line from workers that look at it.
  if (!std::all_of(workers.begin(), workers.end(), has_begun)) {
    epoch_.store(epoch + 1, std::memory_order_seq_cst);
  }
  for (Share& worker : workers) {
    const auto is_outside = [&worker, epoch] {
      return worker.begun.load(std::memory_order_seq_cst) != epoch;
    };
    while (!SpinUntil(is_outside)) worker.begun.wait(epoch, std::memory_order_acquire);
  }
}

void ThreadPool::TakePieces(int thread_idx) noexcept {
  const int num_shares = num_threads();
  try {
    for (int i = 0; i < num_shares; ++i) {
      TakeFrom(&shares_[static_cast<size_t>((thread_idx + i) % num_shares)]);
    }
  } catch (const std::bad_alloc&) {
    out_of_memory_.store(true, std::memory_order_relaxed);  // seen by Dispatch, which waits for us
    for (int i = 0; i < num_shares; ++i) {
      Share& share = shares_[static_cast<size_t>(i)];
      share.next.store(share.end, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::TakeFrom(Share* share) {
  for (;;) {
    const int64_t piece = share->next.fetch_add(1, std::memory_order_relaxed);
    if (piece >= share->end) return;
    const int64_t begin = piece * grain_;
    body_(context_, begin, begin + std::min(grain_, count_ - begin));
  }
}

void ThreadPool::WorkerMain(int thread_idx) {
  if (!cpus_.empty()) BindThread(cpus_[static_cast<size_t>(thread_idx)]);
  std::atomic<uint32_t>& begun = shares_[static_cast<size_t>(thread_idx)].begun;
  uint32_t seen = 0;
  for (;;) {
    const auto changed = [this, seen] { return epoch_.load(std::memory_order_acquire) != seen; };
    while (!SpinUntil(changed)) epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!IsOpen(seen)) continue;
    begun.store(seen, std::memory_order_seq_cst);
    if (epoch_.load(std::memory_order_seq_cst) == seen) TakePieces(thread_idx);
    begun.store(seen + 1, std::memory_order_release);
    begun.notify_one();
  }
}

}  // namespace nibble
