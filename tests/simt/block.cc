// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/simt/block.h"

#include <algorithm>
#include <cstring>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

template <typename Slots>
void ResetAll(Slots* slots) {
  for (auto& slot : *slots) {
    if (slot != nullptr) slot->Reset();
  }
}

// Has come to `meetings` as number `index`; the last one to come leaves at once, and the others
// with it.
template <int kSize, typename Perform>
void Meet(Meetings<kSize>* meetings, unsigned mask, int expected, int index, const char* what,
          void* args, Perform perform) {
  Thread& thread = CurrentThread();
  const auto slot = static_cast<size_t>(index);
  Meeting<kSize>* meeting = nullptr;
  Meeting<kSize>* over = nullptr;
  for (Meeting<kSize>& one : *meetings) {
    if (one.what == nullptr) {
      over = &one;
    } else if (one.mask == mask && one.threads[slot] == nullptr &&
               (one.what == what || std::strcmp(one.what, what) == 0)) {
      meeting = &one;
      break;
    }
  }
  if (meeting == nullptr) {
    meeting = over != nullptr ? over : &meetings->emplace_back();
    meeting->what = what;
    meeting->mask = mask;
    meeting->num_missing = expected;
    meeting->threads.fill(nullptr);
  }
  meeting->args[slot] = args;
  meeting->threads[slot] = &thread;
  if (--meeting->num_missing > 0) {
    thread.Pause(what);
    return;
  }
  perform(meeting->args.data(), mask);
  for (Thread* other : meeting->threads) {
    if (other != nullptr) other->Continue();
  }
  meeting->what = nullptr;
  Progress();
}

}  // namespace

void Thread::Begin(Block* of, const Coordinates& at, int index) {
  block = of;
  where = at;
  linear = index;
  state = kReady;
  barrier = kNoBarrier;
  waits_for = nullptr;
}

void Thread::End() { ResetAll(&slots); }

void Thread::Pause(const char* what) {
  state = kBlocked;
  waits_for = what;
  while (state == kBlocked) fiber.Leave();
  waits_for = nullptr;
}

void Block::Begin(size_t shared_bytes, std::vector<Thread*> threads) {
  constexpr size_t kAlign = 1024;
  threads_ = std::move(threads);
  num_alive_ = static_cast<int>(threads_.size());
  shared_bytes_ = shared_bytes;
  shared_storage_.assign(shared_bytes + kAlign, 0xFF);
  const auto address = reinterpret_cast<uintptr_t>(shared_storage_.data());
  shared_ = shared_storage_.data() + (kAlign - address % kAlign) % kAlign;
#if defined(__SANITIZE_ADDRESS__)
  // Accesses beyond what the launch asked for are found, not only those beyond the padding.
  __asan_poison_memory_region(shared_ + shared_bytes,
                              static_cast<size_t>(shared_storage_.data() + shared_storage_.size() -
                                                  (shared_ + shared_bytes)));
#endif
  barriers_.fill({});
  warps_.resize((threads_.size() + kWarpSize - 1) / kWarpSize);
  warpgroups_.resize((threads_.size() + kWarpgroupSize - 1) / kWarpgroupSize);
}

void Block::End() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(shared_storage_.data(), shared_storage_.size());
#endif
  ResetAll(&slots_);
}

void Block::ThreadEnded() {
  --num_alive_;
  // Threads that have ended are not waited for.
  if (barriers_[0].arrived > 0 && barriers_[0].arrived >= num_alive_) Release(0);
}

void Block::Release(int id) {
  barriers_[static_cast<size_t>(id)] = {};
  for (Thread* thread : threads_) {
    if (thread->barrier == id) thread->Continue();
  }
  Progress();
}

void Block::Arrive(int id, int count) {
  Barrier& barrier = barriers_[static_cast<size_t>(id)];
  if (id != 0) {
    if (barrier.arrived > 0 && barrier.count != count) {
      Fail("barrier " + std::to_string(id) + " of " + std::to_string(count) +
           " threads, of others " + std::to_string(barrier.count));
    }
    barrier.count = count;
  }
  if (++barrier.arrived >= (id == 0 ? num_alive_ : count)) return Release(id);
  Thread& thread = CurrentThread();
  thread.barrier = static_cast<int8_t>(id);
  thread.Pause(id == 0 ? "__syncthreads" : "NamedBarrierSync");
}

void SyncThreads() { CurrentThread().block->Arrive(0, 0); }

void NamedBarrier(int id, int count) {
  if (id < 1 || id > 15) Fail("barrier " + std::to_string(id) + ", the limits are 1 and 15");
  if (count < 1 || count % kWarpSize != 0) {
    Fail("a barrier of " + std::to_string(count) + " threads, not a multiple of a warp");
  }
  CurrentThread().block->Arrive(id, count);
}

void WarpMeeting(unsigned mask, const char* what, void* args,
                 void (*perform)(void* const* args, unsigned mask)) {
  Thread& thread = CurrentThread();
  const int lane = thread.linear % kWarpSize;
  if ((mask >> lane & 1U) == 0) {
    Fail(std::string(what) + " with a mask that does not name its own lane");
  }
  Meet(&thread.block->WarpOf(thread), mask, __builtin_popcount(mask), lane, what, args, perform);
}

void WarpgroupMeeting(const char* what, void* args, void (*perform)(void* const* args)) {
  Thread& thread = CurrentThread();
  Meet(&thread.block->WarpgroupOf(thread), 0, kWarpgroupSize, thread.linear % kWarpgroupSize, what,
       args, [perform](void* const* all, unsigned) { perform(all); });
}

}  // namespace simt
