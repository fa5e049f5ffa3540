// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A fixed set of threads for data-parallel loops inside a step.
//
//   ThreadPool pool(4);                               // the caller and three workers
//   pool.ParallelFor(rows, 16, [&](int64_t begin, int64_t end) { ... });
//
// Workers spin for some microseconds after a loop, then park on a futex: a server that spins at
// barriers starves when it shares its cores. One loop at a time: ParallelFor may be called from any
// thread, but calls must not overlap or nest (checked). What a loop computes must not depend on how
// its range was cut: pieces are handed out dynamically.
//
// A body may run out of memory (std::bad_alloc, on any thread): pieces not yet begun are dropped,
// and ParallelFor throws std::bad_alloc to its caller once all threads have left the loop. No other
// exception may leave a body.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace nibble {

class ThreadPool {
 public:
  // `num_threads` >= 1, the calling thread included.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) over disjoint pieces of at most `grain` (>= 1) that cover [0, count), on
  // all threads, and returns when all are done. Memory written by the pieces is visible to the
  // caller afterwards.
  template <typename Body>
  void ParallelFor(int64_t count, int64_t grain, const Body& body) {
    static_assert(std::is_invocable_v<const Body&, int64_t, int64_t>);
    Dispatch(count, grain, &body, [](const void* context, int64_t begin, int64_t end) {
      (*static_cast<const Body*>(context))(begin, end);
    });
  }

  // Threads this process has CPUs for: its affinity mask, or its control group's quota when that is
  // less. More would be stopped for most of each period, and every loop waits for its last thread.
  static int HostThreads();

 private:
  using BodyFunction = void (*)(const void* context, int64_t begin, int64_t end);

  void Dispatch(int64_t count, int64_t grain, const void* context, BodyFunction body);
  void WorkerMain();
  void TakePieces() noexcept;

  // The loop in progress. Written by Dispatch before it raises `epoch_`, read by workers after they
  // saw it.
  const void* context_ = nullptr;
  BodyFunction body_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 1;

  alignas(64) std::atomic<int64_t> next_{0};    // first index not handed out
  alignas(64) std::atomic<uint32_t> epoch_{0};  // raised once per loop; workers wait on it
  alignas(64) std::atomic<int> num_active_{0};  // workers that have not finished the loop
  std::atomic<bool> busy_{false};
  std::atomic<bool> out_of_memory_{false};  // a piece of the loop in progress threw std::bad_alloc
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace nibble
