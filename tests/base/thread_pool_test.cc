// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <new>
#include <numeric>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, CoversEveryIndexOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.num_threads(), GetParam());
  for (int64_t count : {0, 1, 2, 7, 64, 1000}) {
    for (int64_t grain : {1, 3, 64, 5000}) {
      std::vector<int> hits(static_cast<size_t>(count), 0);
      pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
        ASSERT_LE(end - begin, grain);
        for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
      });
      EXPECT_EQ(std::accumulate(hits.begin(), hits.end(), int64_t{0}), count);
      for (int hit : hits) ASSERT_EQ(hit, 1);
    }
  }
}

TEST_P(ThreadPoolTest, ResultsOfOneLoopAreVisibleToTheNext) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> values(97, 0);
  for (int round = 0; round < 500; ++round) {
    pool.ParallelFor(97, 5, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i;
    });
  }
  for (int64_t i = 0; i < 97; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], 500 * i);
}

TEST_P(ThreadPoolTest, WorkersWakeUpAfterParking) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(
        std::chrono::milliseconds(20));  // longer than the spin: workers sleep
    std::atomic<int64_t> sum{0};
    pool.ParallelFor(100, 1, [&](int64_t begin, int64_t) { sum.fetch_add(begin); });
    EXPECT_EQ(sum.load(), 4950);
  }
}

// A thread that is held up keeps the piece it has and no other.
TEST_P(ThreadPoolTest, OthersTakeOverFromAThreadThatIsHeldUp) {
  ThreadPool pool(GetParam());
  std::atomic<int64_t> num_done{0};
  constexpr int64_t kCount = 64;
  pool.ParallelFor(kCount, 1, [&](int64_t begin, int64_t) {
    // The first piece waits for all the others: it would wait for ever if any of them were tied to
    // its thread.
    if (begin == 0 && GetParam() > 1) {
      while (num_done.load() < kCount - 1) std::this_thread::yield();
    }
    num_done.fetch_add(1);
  });
  EXPECT_EQ(num_done.load(), kCount);
}

// The other thread of a pool of two.
pthread_t WorkerOf(ThreadPool* pool) {
  pthread_t worker = pthread_self();
  std::atomic<int> num_inside{0};
  pool->ParallelFor(2, 1, [&](int64_t begin, int64_t) {
    if (begin == 1) worker = pthread_self();
    num_inside.fetch_add(1);
    while (num_inside.load() < 2) std::this_thread::yield();
  });
  return worker;
}

std::atomic<bool> held{false};
std::atomic<bool> let_go{false};
std::atomic<bool> gave_up{false};

// Stands for a thread whose CPU runs something else.
void HoldThread(int /*signal*/) {
  held.store(true);
  for (int i = 0; i < 5'000 && !let_go.load(); ++i) usleep(1000);
  if (!let_go.load()) gave_up.store(true);
}

// A thread that is held up before it has begun keeps nothing, and is not waited for.
TEST(ThreadPoolTest, ALoopDoesNotWaitForAThreadThatHasNotBegun) {
  struct sigaction action = {};
  struct sigaction before = {};
  action.sa_handler = HoldThread;
  ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
  constexpr int64_t kCount = 50;
  ThreadPool pool(2);
  const pthread_t worker = WorkerOf(&pool);
  for (const bool parked : {true, false}) {
    held = let_go = false;
    if (parked) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ASSERT_EQ(pthread_kill(worker, SIGUSR1), 0);
    while (!held.load()) std::this_thread::yield();
    for (int round = 0; round < 3; ++round) {
      int64_t num_done = 0;  // by this thread alone
      pool.ParallelFor(kCount, 1, [&](int64_t, int64_t) { ++num_done; });
      EXPECT_EQ(num_done, kCount);
    }
    EXPECT_FALSE(gave_up.load());
    let_go = true;
    // It takes part again.
    std::atomic<int> num_met{0};
    pool.ParallelFor(2, 1, [&](int64_t, int64_t) {
      num_met.fetch_add(1);
      while (num_met.load() < 2) std::this_thread::yield();
    });
  }
  ASSERT_EQ(sigaction(SIGUSR1, &before, nullptr), 0);
}

void HoldThreadBriefly(int /*signal*/) { usleep(50); }

// Wherever it is held up, also between seeing a loop and beginning it: what it began belongs to the
// loop in progress.
TEST(ThreadPoolTest, ThreadsMayBeHeldUpAnywhere) {
  struct sigaction action = {};
  struct sigaction before = {};
  action.sa_handler = HoldThreadBriefly;
  ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
  {
    ThreadPool pool(2);
    const pthread_t worker = WorkerOf(&pool);
    for (int round = 0; round < 20'000; ++round) {
      if (round % 4 == 0) {
        ASSERT_EQ(pthread_kill(worker, SIGUSR1), 0);
      }
      const int64_t count = 2 + round % 5;
      std::vector<int> hits(static_cast<size_t>(count), 0);
      pool.ParallelFor(count, 1,
                       [&](int64_t begin, int64_t) { ++hits[static_cast<size_t>(begin)]; });
      for (const int hit : hits) ASSERT_EQ(hit, 1);
    }
  }
  ASSERT_EQ(sigaction(SIGUSR1, &before, nullptr), 0);
}

// Equal loops meet the same thread on the same part of the range, as long as none is held up.
TEST(ThreadPoolTest, EveryThreadStartsWithItsOwnShare) {
  constexpr int kThreads = 3;
  ThreadPool pool(kThreads);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::thread::id> owners(kThreads);
    std::atomic<int> num_inside{0};
    pool.ParallelFor(kThreads * 2, 1, [&](int64_t begin, int64_t) {
      if (begin % 2 != 0) return;
      // Nobody leaves its first piece before all are in theirs.
      owners[static_cast<size_t>(begin / 2)] = std::this_thread::get_id();
      num_inside.fetch_add(1);
      while (num_inside.load() < kThreads) std::this_thread::yield();
    });
    EXPECT_EQ(owners[0], std::this_thread::get_id());
    EXPECT_NE(owners[1], owners[2]);
  }
}

TEST(ThreadPoolTest, ThreadsAreBoundToTheirCpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  const int num_cpus = CPU_COUNT(&set);
  const std::vector<int> cpus = ThreadPool::CpusToBind(num_cpus);
  ASSERT_EQ(static_cast<int>(cpus.size()), num_cpus);
  EXPECT_TRUE(ThreadPool::CpusToBind(num_cpus + 1).empty());

  // Also a CPU that does not exist does no harm.
  for (const int first : {cpus[0], 1 << 20}) {
    std::thread([&, first] {
      ThreadPool pool(2, {first, cpus[0]});
      pool.BindCaller();
      std::atomic<int> num_inside{0};
      pool.ParallelFor(2, 1, [&](int64_t begin, int64_t) {
        num_inside.fetch_add(1);
        while (num_inside.load() < 2) std::this_thread::yield();
        cpu_set_t own;
        CPU_ZERO(&own);
        EXPECT_EQ(sched_getaffinity(0, sizeof(own), &own), 0);
        EXPECT_EQ(CPU_COUNT(&own), begin == 0 && first != cpus[0] ? num_cpus : 1);
      });
    }).join();
  }
}

TEST(ThreadPoolTest, AnUnboundCallerStartsUnboundThreads) {
  const auto num_cpus = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
    return CPU_COUNT(&set);
  };
  const auto of_new_thread = [&num_cpus] {
    int num = 0;
    std::thread([&] { num = num_cpus(); }).join();
    return num;
  };
  const int all = num_cpus();
  std::thread([&] {
    ThreadPool pool(1, {ThreadPool::CpusToBind(all)[0]});
    pool.BindCaller();
    EXPECT_EQ(of_new_thread(), 1);
    pool.UnbindCaller();
    EXPECT_EQ(of_new_thread(), all);
    pool.BindCaller();
    EXPECT_EQ(num_cpus(), 1);
  }).join();
}

// Whichever thread it happens on, the caller learns it and the pool stays usable.
TEST_P(ThreadPoolTest, OutOfMemoryInABodyReachesTheCaller) {
  ThreadPool pool(GetParam());
  for (int64_t failing = 0; failing < 40; failing += 3) {
    EXPECT_THROW(pool.ParallelFor(40, 1,
                                  [&](int64_t begin, int64_t) {
                                    if (begin == failing) throw std::bad_alloc();
                                  }),
                 std::bad_alloc);
    EXPECT_THROW(pool.ParallelFor(1, 1, [](int64_t, int64_t) { throw std::bad_alloc(); }),
                 std::bad_alloc);
    std::atomic<int64_t> sum{0};
    pool.ParallelFor(100, 3, [&](int64_t begin, int64_t end) { sum.fetch_add(end - begin); });
    EXPECT_EQ(sum.load(), 100);
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 8));

// Also where a loop is too small, or the pool too, for a second thread: else the bug would show on
// large inputs and large machines only.
TEST(ThreadPoolDeathTest, NestedLoopsAreABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int num_threads : {1, 2}) {
    for (const int64_t outer : {1, 8}) {
      for (const int64_t inner : {1, 8}) {
        EXPECT_DEATH(
            {
              ThreadPool pool(num_threads);
              pool.ParallelFor(outer, 1, [&](int64_t, int64_t) {
                pool.ParallelFor(inner, 1, [](int64_t, int64_t) {});
              });
            },
            "check failed");
      }
    }
  }
}

TEST(ThreadPoolDeathTest, OverlappingLoopsAreABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        ThreadPool pool(1);
        std::atomic<bool> inside{false};
        std::thread other([&] {
          pool.ParallelFor(1, 1, [&](int64_t, int64_t) {
            inside = true;
            for (;;) std::this_thread::yield();
          });
        });
        while (!inside) std::this_thread::yield();
        pool.ParallelFor(1, 1, [](int64_t, int64_t) {});
      },
      "check failed");
}

}  // namespace
}  // namespace nibble
