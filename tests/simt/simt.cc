// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/simt.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <list>
#include <random>
#include <string_view>
#include <vector>

#include <boost/context/fiber.hpp>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kWarpSize = 32;
constexpr int kWarpgroupSize = 128;
// Rounds over all threads in which none got anywhere.
constexpr int kMaxIdleRounds = 100'000;

// Stacks are used again: a launch may have a hundred thousand threads, a thousand at a time.
class StackPool {
 public:
  boost::context::stack_context allocate() {
    if (free_.empty()) {
      boost::context::stack_context stack;
      stack.size = kStackBytes;
      stack.sp = static_cast<char*>(std::malloc(kStackBytes)) + kStackBytes;
      return stack;
    }
    const boost::context::stack_context stack = free_.back();
    free_.pop_back();
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(static_cast<char*>(stack.sp) - stack.size, stack.size);
#endif
    return stack;
  }
  void deallocate(boost::context::stack_context& stack) { free_.push_back(stack); }
  ~StackPool() {
    for (auto& stack : free_) std::free(static_cast<char*>(stack.sp) - stack.size);
  }

 private:
  std::vector<boost::context::stack_context> free_;
};

struct PoolAllocator {
  StackPool* pool;
  boost::context::stack_context* made;
  boost::context::stack_context allocate() const { return *made = pool->allocate(); }
  void deallocate(boost::context::stack_context& stack) const { pool->deallocate(stack); }
};

struct Meeting {
  const char* what = "";
  unsigned mask = 0;  // of a warp
  std::array<void*, kWarpgroupSize> args{};
  int expected = 0;
  int arrived = 0;
  int left = 0;
  bool done = false;
};

struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

struct Block {
  Dim3 idx;
  std::vector<uint8_t> shared_storage;
  uint8_t* shared = nullptr;
  size_t shared_bytes = 0;
  int num_alive = 0;
  std::array<Barrier, 16> barriers;
  std::vector<std::list<Meeting>> warps;
  std::vector<std::list<Meeting>> warpgroups;
  std::array<std::shared_ptr<void>, kNumSlots> slots;
};

struct Thread {
  Coordinates where;
  int linear = 0;
  Block* block = nullptr;
  bool ended = false;
  const char* waits_for = nullptr;
  boost::context::fiber fiber;   // suspended: the thread
  boost::context::fiber caller;  // running: who resumed it
  boost::context::stack_context stack;
  std::array<std::shared_ptr<void>, kNumSlots> slots;
};

thread_local StackPool g_stacks;
thread_local Thread* g_thread = nullptr;
thread_local Schedule g_mode;
thread_local uint64_t g_num_launches = 0;
thread_local uint64_t g_progress = 0;
Schedule g_forced;
bool g_is_forced = false;

#if defined(__SANITIZE_ADDRESS__)
thread_local void* g_host_fake_stack = nullptr;
thread_local const void* g_host_stack = nullptr;
thread_local size_t g_host_stack_bytes = 0;
#endif

// Into a thread, until it yields or ends.
void Resume(Thread* thread) {
  g_thread = thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&g_host_fake_stack,
                                 static_cast<char*>(thread->stack.sp) - thread->stack.size,
                                 thread->stack.size);
#endif
  thread->fiber = std::move(thread->fiber).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(g_host_fake_stack, nullptr, nullptr);
#endif
  g_thread = nullptr;
}

void Leave(Thread* thread, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, g_host_stack,
                                 g_host_stack_bytes);
#endif
  if (for_good) return;
  thread->caller = std::move(thread->caller).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &g_host_stack, &g_host_stack_bytes);
#endif
}

void Start(Thread* thread, const std::function<void()>& body) {
  thread->fiber = boost::context::fiber(
      std::allocator_arg, PoolAllocator{&g_stacks, &thread->stack},
      [thread, &body](boost::context::fiber&& caller) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(nullptr, &g_host_stack, &g_host_stack_bytes);
#endif
        thread->caller = std::move(caller);
        body();
        thread->ended = true;
        --thread->block->num_alive;
        ++g_progress;
        Leave(thread, /*for_good=*/true);
        return std::move(thread->caller);
      });
}

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
  return kTurns[g_num_launches % std::size(kTurns)];
}

std::string Describe(const Thread& thread) {
  const Coordinates& w = thread.where;
  return "block (" + std::to_string(w.block_idx.x) + ", " + std::to_string(w.block_idx.y) + ", " +
         std::to_string(w.block_idx.z) + ") thread (" + std::to_string(w.thread_idx.x) + ", " +
         std::to_string(w.thread_idx.y) + ", " + std::to_string(w.thread_idx.z) + ")";
}

[[noreturn]] void FailDeadlock(const std::vector<std::unique_ptr<Thread>>& threads) {
  std::string why = "the threads wait for each other in vain:";
  int num_named = 0;
  for (const auto& thread : threads) {
    if (thread->ended || num_named == 40) continue;
    ++num_named;
    why += "\n  " + Describe(*thread) + ": " +
           (thread->waits_for != nullptr ? thread->waits_for : "waits for memory");
  }
  Fail(why);
}

std::unique_ptr<Block> MakeBlock(const GridConfig& config, Dim3 idx) {
  auto block = std::make_unique<Block>();
  block->idx = idx;
  constexpr size_t kAlign = 1024;
  block->shared_bytes = config.shared_bytes;
  block->shared_storage.assign(config.shared_bytes + kAlign, 0xFF);
  const auto address = reinterpret_cast<uintptr_t>(block->shared_storage.data());
  block->shared = block->shared_storage.data() + (kAlign - address % kAlign) % kAlign;
#if defined(__SANITIZE_ADDRESS__)
  // Accesses beyond what the launch asked for are found, not only those beyond the padding.
  __asan_poison_memory_region(
      block->shared + config.shared_bytes,
      static_cast<size_t>(block->shared_storage.data() + block->shared_storage.size() -
                          (block->shared + config.shared_bytes)));
#endif
  const int num_threads = static_cast<int>(config.block.x * config.block.y * config.block.z);
  block->num_alive = num_threads;
  block->warps.resize(static_cast<size_t>((num_threads + kWarpSize - 1) / kWarpSize));
  block->warpgroups.resize(
      static_cast<size_t>((num_threads + kWarpgroupSize - 1) / kWarpgroupSize));
  return block;
}

void AddThreads(const GridConfig& config, Block* block,
                std::vector<std::unique_ptr<Thread>>* threads) {
  int linear = 0;
  for (unsigned z = 0; z < config.block.z; ++z) {
    for (unsigned y = 0; y < config.block.y; ++y) {
      for (unsigned x = 0; x < config.block.x; ++x) {
        auto thread = std::make_unique<Thread>();
        thread->where = {{x, y, z}, block->idx, config.block, config.grid};
        thread->linear = linear++;
        thread->block = block;
        threads->push_back(std::move(thread));
      }
    }
  }
}

void RunThreads(std::vector<std::unique_ptr<Thread>>* threads, const std::function<void()>& body) {
  if (g_mode.order == Order::kFalling) std::reverse(threads->begin(), threads->end());
  std::mt19937 random(static_cast<unsigned>(g_num_launches));
  if (g_mode.order == Order::kShuffled) std::shuffle(threads->begin(), threads->end(), random);
  for (auto& thread : *threads) Start(thread.get(), body);
  int idle_rounds = 0;
  for (size_t num_alive = threads->size(); num_alive > 0;) {
    const uint64_t progress = g_progress;
    num_alive = 0;
    for (auto& thread : *threads) {
      if (thread->ended) continue;
      Resume(thread.get());
      num_alive += thread->ended ? 0 : 1;
    }
    idle_rounds = progress == g_progress ? idle_rounds + 1 : 0;
    if (idle_rounds > kMaxIdleRounds) FailDeadlock(*threads);
  }
}

void Meet(std::list<Meeting>* meetings, unsigned mask, int expected, int index, const char* what,
          void* args, const std::function<void(Meeting*)>& perform) {
  auto found = std::find_if(meetings->begin(), meetings->end(), [&](const Meeting& meeting) {
    return !meeting.done && meeting.mask == mask && std::strcmp(meeting.what, what) == 0 &&
           meeting.args[static_cast<size_t>(index)] == nullptr;
  });
  if (found == meetings->end()) {
    meetings->push_back({.what = what, .mask = mask, .expected = expected, .left = expected});
    found = std::prev(meetings->end());
  }
  static char nothing;
  found->args[static_cast<size_t>(index)] = args != nullptr ? args : &nothing;
  if (++found->arrived == found->expected) {
    perform(&*found);
    found->done = true;
    ++g_progress;
  }
  g_thread->waits_for = what;
  while (!found->done) Yield();
  g_thread->waits_for = nullptr;
  if (--found->left == 0) meetings->erase(found);
}

}  // namespace

void ForceSchedule(const Schedule& schedule) {
  g_forced = schedule;
  g_is_forced = true;
}

void UnforceSchedule() { g_is_forced = false; }

void RunGrid(const GridConfig& config, const std::function<void()>& body) {
  g_mode = NextSchedule();
  ++g_num_launches;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Thread>> threads;
  const auto run = [&] {
    RunThreads(&threads, body);
    threads.clear();
#if defined(__SANITIZE_ADDRESS__)
    for (const auto& block : blocks) {
      __asan_unpoison_memory_region(block->shared_storage.data(), block->shared_storage.size());
    }
#endif
    blocks.clear();
  };
  for (unsigned z = 0; z < config.grid.z; ++z) {
    for (unsigned y = 0; y < config.grid.y; ++y) {
      for (unsigned x = 0; x < config.grid.x; ++x) {
        blocks.push_back(MakeBlock(config, {x, y, z}));
        AddThreads(config, blocks.back().get(), &threads);
        if (!config.cooperative) run();
      }
    }
  }
  if (config.cooperative) run();
}

const Coordinates& Where() { return g_thread->where; }
int Lane() { return g_thread->linear % kWarpSize; }
const Schedule& Mode() { return g_mode; }
uint8_t* SharedMemory() { return g_thread->block->shared; }
size_t SharedBytes() { return g_thread->block->shared_bytes; }
std::shared_ptr<void>& ThreadSlot(int slot) {
  return g_thread->slots.at(static_cast<size_t>(slot));
}
std::shared_ptr<void>& BlockSlot(int slot) {
  return g_thread->block->slots.at(static_cast<size_t>(slot));
}

void Yield() { Leave(g_thread, /*for_good=*/false); }
void YieldFor(const char* what) {
  g_thread->waits_for = what;
  Yield();
  g_thread->waits_for = nullptr;
}
void Progress() { ++g_progress; }

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

void SyncThreads() {
  Block* const block = g_thread->block;
  Barrier* const barrier = &block->barriers[0];
  const uint64_t generation = barrier->generation;
  ++barrier->arrived;
  g_thread->waits_for = "__syncthreads";
  while (barrier->generation == generation) {
    // Threads that end meanwhile are no longer waited for.
    if (barrier->arrived >= block->num_alive) {
      barrier->arrived = 0;
      ++barrier->generation;
      ++g_progress;
      break;
    }
    Yield();
  }
  g_thread->waits_for = nullptr;
}

void NamedBarrier(int id, int count, bool wait) {
  if (id < 1 || id > 15) Fail("barrier " + std::to_string(id) + ", the limits are 1 and 15");
  Barrier* const barrier = &g_thread->block->barriers[static_cast<size_t>(id)];
  const uint64_t generation = barrier->generation;
  if (++barrier->arrived == count) {
    barrier->arrived = 0;
    ++barrier->generation;
    ++g_progress;
    return;
  }
  if (!wait) return;
  g_thread->waits_for = "bar.sync";
  while (barrier->generation == generation) Yield();
  g_thread->waits_for = nullptr;
}

void WarpMeeting(unsigned mask, const char* what, void* args,
                 void (*perform)(void* const* args, unsigned mask)) {
  const int lane = Lane();
  if ((mask >> lane & 1U) == 0) {
    Fail(Describe(*g_thread) + ": " + what + " with a mask that does not name its own lane");
  }
  Meet(&g_thread->block->warps[static_cast<size_t>(g_thread->linear / kWarpSize)], mask,
       __builtin_popcount(mask), lane, what, args,
       [perform](Meeting* meeting) { perform(meeting->args.data(), meeting->mask); });
}

void WarpgroupMeeting(const char* what, void* args, void (*perform)(void* const* args)) {
  Meet(&g_thread->block->warpgroups[static_cast<size_t>(g_thread->linear / kWarpgroupSize)], 0,
       kWarpgroupSize, g_thread->linear % kWarpgroupSize, what, args,
       [perform](Meeting* meeting) { perform(meeting->args.data()); });
}

void Fail(const std::string& why) {
  std::fprintf(stderr, "simt: %s%s\n",
               g_thread != nullptr ? (Describe(*g_thread) + ": ").c_str() : "", why.c_str());
  std::abort();
}

}  // namespace simt
