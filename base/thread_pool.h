// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A fixed set of threads for data-parallel loops inside a step.
//
//   ThreadPool pool(4);                               // the caller and three workers
//   pool.ParallelFor(rows, 16, [&](int64_t begin, int64_t end) { ... });
//
// Workers spin for some microseconds after a loop, then park on a futex: a server that spins at
// barriers starves when it shares its cores. One loop at a time: ParallelFor may be called from any
// thread, but calls must not overlap or nest (checked).
//
// Every thread first works through a share of the range of its own, the same for equal counts, so
// that it meets the memory again that it touched first and its reads are one stream; who is done
// takes pieces from the others, so that a thread that lost its CPU holds up one piece and no more,
// and none at all while it had not begun: a loop ends with its last piece, not with its last
// thread. What a loop computes must therefore not depend on how its range was cut.
//
// A body may run out of memory (std::bad_alloc, on any thread): pieces not yet begun are dropped,
// and ParallelFor throws std::bad_alloc to its caller once all threads have left the loop. No other
// exception may leave a body.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace nibble {

class ThreadPool {
 public:
  // `num_threads` >= 1, the calling thread included. With `cpus` (empty, or one of each thread's)
  // worker i runs on cpus[i] alone; a CPU that is refused by the system is left to its choice.
  explicit ThreadPool(int num_threads, std::vector<int> cpus = {});
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

  // Binds the calling thread to cpus[0], when CPUs were given: for the thread that will run the
  // loops, and none else, as threads that it starts later inherit the binding.
  void BindCaller() const;
  // Undoes it, to start such threads: the calling thread may use what the pool's maker could.
  void UnbindCaller() const;

  // The CPUs for `num_threads` threads of a process that has the machine, or its control group, for
  // itself: all of its affinity mask. Empty when there are more or fewer than that: two servers
  // that both took the first CPUs would share them while others idle.
  static std::vector<int> CpusToBind(int num_threads);
  // Threads this process has CPUs for: its affinity mask, or its control group's quota when that is
  // less. More would be stopped for most of each period, and every loop waits for its last thread.
  static int HostThreads();

 private:
  using BodyFunction = void (*)(const void* context, int64_t begin, int64_t end);

  // A thread's share of the range: pieces next..end - 1.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
    std::atomic<uint32_t> begun{0};  // the last loop its worker began, one more since it has left
  };
  // The epochs of loops are odd. An even one is the end of the loop before, which nobody may begin.
  static bool IsOpen(uint32_t epoch) { return epoch % 2 != 0; }

  void Dispatch(int64_t count, int64_t grain, const void* context, BodyFunction body);
  void WaitForWorkers(uint32_t epoch);
  void WorkerMain(int thread_idx);
  void TakePieces(int thread_idx) noexcept;
  void TakeFrom(Share* share);

  // The loop in progress. Written by Dispatch before it raises `epoch_`, read by workers that have
  // begun it. Dispatch returns when all have left that had begun; if any had not, it ends the
  // loop's epoch first. A worker says that it has begun and looks again whether the epoch is still
  // the loop's: of the two, at least one sees the other, as all four accesses are sequentially
  // consistent.
  const void* context_ = nullptr;
  BodyFunction body_ = nullptr;
  int64_t count_ = 0;
  int64_t grain_ = 1;

  const std::vector<int> cpus_;
  cpu_set_t cpus_of_maker_;                     // empty where they cannot be known
  const std::unique_ptr<Share[]> shares_;       // [num_threads]
  alignas(64) std::atomic<uint32_t> epoch_{0};  // workers wait on it
  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<bool> out_of_memory_{false};  // a piece of the loop in progress threw std::bad_alloc
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace nibble
