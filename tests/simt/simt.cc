// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/simt.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <random>
#include <string_view>
#include <vector>

#include "tests/simt/block.h"

namespace simt {

constinit thread_local const Coordinates* current_coordinates = nullptr;

namespace {

// Rounds over all threads in which none got anywhere, and none is there who could help from
// outside. With other threads in the process (ranks whose kernels wait for each other): so much
// time of the processor.
constexpr int kMaxIdleRounds = 50'000;
constexpr double kMaxIdleSeconds = 30;

// Of one host thread; used again from launch to launch.
struct Emulator {
  const std::function<void()>* body = nullptr;
  Schedule mode;
  uint64_t num_launches = 0;
  uint64_t progress = 0;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Thread*> order;
};
thread_local Emulator g_emulator;
constinit thread_local Thread* g_thread = nullptr;

Schedule g_forced;
bool g_is_forced = false;

Schedule NextSchedule() {
  if (g_is_forced) return g_forced;
  if (const char* text = std::getenv("SIMT_SCHEDULE"); text != nullptr) {
    const std::string_view forced = text;
    return {.order = forced.starts_with("falling")    ? Order::kFalling
                     : forced.starts_with("shuffled") ? Order::kShuffled
                                                      : Order::kRising,
            .eager_copies = !forced.ends_with("lazy")};
  }
  constexpr Schedule kTurns[] = {{Order::kRising, true},
                                 {Order::kFalling, false},
                                 {Order::kShuffled, true},
                                 {Order::kShuffled, false}};
  constexpr size_t kNumTurns = std::size(kTurns);
  // One step further every round, so that kernels that are launched by turns get all of them.
  const uint64_t launch = g_emulator.num_launches;
  return kTurns[(launch + launch / kNumTurns) % kNumTurns];
}

std::string Describe(Dim3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}
std::string Describe(const Thread& thread) {
  return "block " + Describe(thread.where.block_idx) + " thread " +
         Describe(thread.where.thread_idx);
}
std::string Describe(const Schedule& mode) {
  return std::string(mode.order == Order::kRising    ? "rising"
                     : mode.order == Order::kFalling ? "falling"
                                                     : "shuffled") +
         (mode.eager_copies ? ",eager" : ",lazy");
}

[[noreturn]] void FailDeadlock() {
  constexpr int kMaxNamed = 40;
  std::string why = "the threads wait for each other in vain:";
  int num_named = 0;
  for (const Thread* thread : g_emulator.order) {
    if (thread->state == Thread::kEnded || ++num_named > kMaxNamed) continue;
    why += "\n  " + Describe(*thread) + ": " +
           (thread->waits_for != nullptr ? thread->waits_for : "waits for memory");
  }
  if (num_named > kMaxNamed) {
    why += "\n  and " + std::to_string(num_named - kMaxNamed) + " more";
  }
  Fail(why);
}

double ProcessorSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

bool IsOnlyHostThread() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks)) == 1;
}

// Whether a launch whose threads only spin, or do not even that, can be given up.
class Patience {
 public:
  void Check(bool got_somewhere, bool all_blocked) {
    if (got_somewhere) {
      idle_rounds_ = 0;
      return;
    }
    if (all_blocked) FailDeadlock();
    if (++idle_rounds_ % kMaxIdleRounds != 0) {
      if (idle_rounds_ > 16) sched_yield();
      return;
    }
    if (IsOnlyHostThread()) FailDeadlock();
    if (idle_rounds_ == kMaxIdleRounds) {
      since_ = ProcessorSeconds();
    } else if (ProcessorSeconds() - since_ > kMaxIdleSeconds) {
      FailDeadlock();
    }
  }

 private:
  int64_t idle_rounds_ = 0;
  double since_ = 0;
};

void RunThreads() {
  std::vector<Thread*>& order = g_emulator.order;
  if (g_emulator.mode.order == Order::kFalling) std::reverse(order.begin(), order.end());
  if (g_emulator.mode.order == Order::kShuffled) {
    std::mt19937 random(static_cast<unsigned>(g_emulator.num_launches));
    std::shuffle(order.begin(), order.end(), random);
  }
  Patience patience;
  for (size_t num_alive = order.size(); num_alive > 0;) {
    const uint64_t progress = g_emulator.progress;
    bool all_blocked = true;
    for (Thread* const thread : order) {
      if (thread->state != Thread::kReady) continue;
      all_blocked = false;
      g_thread = thread;
      current_coordinates = &thread->where;
      thread->fiber.Resume();
      if (thread->state == Thread::kEnded) --num_alive;
    }
    g_thread = nullptr;
    if (num_alive > 0) patience.Check(progress != g_emulator.progress, all_blocked);
  }
}

void RunThread(void* arg) {
  auto* const thread = static_cast<Thread*>(arg);
  (*g_emulator.body)();
  thread->state = Thread::kEnded;
  ++g_emulator.progress;
  thread->block->ThreadEnded();
}

// The next `config.block` threads and block `index` of those of this launch.
void AddBlock(const GridConfig& config, Dim3 idx, size_t index) {
  const size_t num_threads = size_t{config.block.x} * config.block.y * config.block.z;
  auto& [body, mode, num_launches, progress, blocks, threads, order] = g_emulator;
  if (blocks.size() == index) blocks.push_back(std::make_unique<Block>());
  while (threads.size() < (index + 1) * num_threads) {
    threads.push_back(std::make_unique<Thread>(RunThread));
  }
  Block* const block = blocks[index].get();
  size_t next = index * num_threads;
  for (unsigned z = 0; z < config.block.z; ++z) {
    for (unsigned y = 0; y < config.block.y; ++y) {
      for (unsigned x = 0; x < config.block.x; ++x) {
        Thread* const thread = threads[next++].get();
        thread->Begin(block, {{x, y, z}, idx, config.block, config.grid},
                      static_cast<int>(next - 1 - index * num_threads));
        order.push_back(thread);
      }
    }
  }
  block->Begin(config.shared_bytes,
               {order.end() - static_cast<ptrdiff_t>(num_threads), order.end()});
}

}  // namespace

void ForceSchedule(const Schedule& schedule) {
  g_forced = schedule;
  g_is_forced = true;
}

void UnforceSchedule() { g_is_forced = false; }

void RunGrid(const GridConfig& config, const std::function<void()>& body) {
  g_emulator.mode = NextSchedule();
  g_emulator.body = &body;
  ++g_emulator.num_launches;
  size_t num_blocks = 0;
  const auto run = [&] {
    RunThreads();
    for (Thread* thread : g_emulator.order) thread->End();
    for (size_t i = 0; i < num_blocks; ++i) g_emulator.blocks[i]->End();
    g_emulator.order.clear();
    num_blocks = 0;
  };
  for (unsigned z = 0; z < config.grid.z; ++z) {
    for (unsigned y = 0; y < config.grid.y; ++y) {
      for (unsigned x = 0; x < config.grid.x; ++x) {
        AddBlock(config, {x, y, z}, num_blocks++);
        if (!config.cooperative) run();
      }
    }
  }
  if (config.cooperative) run();
}

Thread& CurrentThread() {
  if (g_thread == nullptr) Fail("a device function was called on the host");
  return *g_thread;
}

int Lane() { return CurrentThread().linear % kWarpSize; }
const Schedule& Mode() { return g_emulator.mode; }
uint8_t* SharedMemory() { return CurrentThread().block->shared(); }
size_t SharedBytes() { return CurrentThread().block->shared_bytes(); }
std::unique_ptr<Kept>& ThreadSlot(int slot) {
  return CurrentThread().slots[static_cast<size_t>(slot)];
}
std::unique_ptr<Kept>& BlockSlot(int slot) { return CurrentThread().block->slot(slot); }

void Yield() { CurrentThread().fiber.Leave(); }
void YieldFor(const char* what) {
  Thread& thread = CurrentThread();
  thread.waits_for = what;
  thread.fiber.Leave();
  thread.waits_for = nullptr;
}
void Progress() { ++g_emulator.progress; }

void CheckAligned(const void* data, size_t align, const char* what) {
  if (reinterpret_cast<uintptr_t>(data) % align != 0) {
    Fail(std::string(what) + ": the address is not aligned to " + std::to_string(align) + " bytes");
  }
}
void CheckShared(const void* data, size_t bytes, const char* what) {
  const auto begin = reinterpret_cast<uintptr_t>(SharedMemory());
  const auto address = reinterpret_cast<uintptr_t>(data);
  if (address < begin || address + bytes > begin + SharedBytes()) {
    Fail(std::string(what) + ": the address is not of the block's shared memory");
  }
}

void Fail(const std::string& why) {
  std::fprintf(stderr, "simt: launch %llu (SIMT_SCHEDULE=%s): %s%s\n",
               static_cast<unsigned long long>(g_emulator.num_launches),
               Describe(g_emulator.mode).c_str(),
               g_thread != nullptr ? (Describe(*g_thread) + ": ").c_str() : "", why.c_str());
  std::abort();
}

}  // namespace simt
