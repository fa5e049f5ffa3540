// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Runs CUDA kernels on the CPU, for tests: every CUDA thread is a fiber, every block a set of them
// that meets at barriers, shuffles and matrix instructions. Nothing here is fast; what it is for:
//
// - Kernels are compiled from the sources that nvcc compiles (include/ shadows cuda_runtime.h and
//   the one-instruction wrappers of kernels/device/cuda), so their tests run on every machine,
//   under AddressSanitizer too.
// - Hardware promises little about order, and the emulator keeps no more than it: threads run in
//   falling, rising or shuffled order between two barriers, asynchronous copies arrive at once or
//   at the last moment, streams run when somebody waits for them. Launches go through these by
//   turns (Schedule), so that a missing barrier or wait gives a wrong result and not luck.
// - Threads of a warp that meet in different instructions, and threads that wait for each other in
//   vain, end the test with what each of them waits for.
//
// README.md has what it finds and what it cannot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace simt {

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

enum class Order { kRising, kFalling, kShuffled };
// How one launch runs.
struct Schedule {
  Order order = Order::kRising;
  bool eager_copies = true;  // else asynchronous copies arrive when they are waited for
};
// Every launch from now on; unset (the default): by turns, from launch to launch. SIMT_SCHEDULE in
// the environment, "falling,lazy" for example, does the same.
void ForceSchedule(const Schedule& schedule);
void UnforceSchedule();

struct GridConfig {
  Dim3 grid;
  Dim3 block;
  size_t shared_bytes = 0;
  bool cooperative = false;  // all blocks are there at the same time, in turns
};
// Runs `body` once for every thread of the grid. Called by the shadow runtime.
void RunGrid(const GridConfig& config, const std::function<void()>& body);

// ---- What kernels and instructions ask, from inside a thread ----

struct Coordinates {
  Dim3 thread_idx;
  Dim3 block_idx;
  Dim3 block_dim;
  Dim3 grid_dim;
};
extern constinit thread_local const Coordinates* current_coordinates;
inline const Coordinates& Where() { return *current_coordinates; }
int Lane();              // in the warp
const Schedule& Mode();  // of this launch
// The block's dynamic shared memory, aligned to 1024; filled with 0xFF when the block starts.
uint8_t* SharedMemory();
size_t SharedBytes();

// Lets the other threads of the launch run. Every loop that waits for memory calls it.
void Yield();
// The same; `what` is named if the wait is in vain.
void YieldFor(const char* what);
// Says that waiting has made progress (another thread can go on now): the search for deadlocks.
void Progress();
// __syncthreads: all threads of the block that have not ended.
void SyncThreads();
// bar.sync: `count` threads at barrier `id` (1..15).
void NamedBarrier(int id, int count);

// A meeting of the lanes of `mask` of this warp: the last one to come runs perform(args, mask),
// args[i] being what lane i brought (null: not of the mask); then all go on. `what` must be the
// same for all, and names the instruction in complaints.
void WarpMeeting(unsigned mask, const char* what, void* args,
                 void (*perform)(void* const* args, unsigned mask));
// The same of the 128 threads of a warpgroup; `args` has 128 entries.
void WarpgroupMeeting(const char* what, void* args, void (*perform)(void* const* args));

// What instructions keep for a thread or a block (queues of copies under way): made at first use,
// used again by the threads and blocks after it.
class Kept {
 public:
  virtual ~Kept() = default;
  // The thread or block has ended. Fail()s if something is under way that should not be.
  virtual void Reset() = 0;
};
inline constexpr int kNumSlots = 4;
std::unique_ptr<Kept>& ThreadSlot(int slot);
std::unique_ptr<Kept>& BlockSlot(int slot);
template <typename T>
T& ThreadKept(int slot) {
  std::unique_ptr<Kept>& kept = ThreadSlot(slot);
  if (kept == nullptr) kept = std::make_unique<T>();
  return static_cast<T&>(*kept);
}
template <typename T>
T& BlockKept(int slot) {
  std::unique_ptr<Kept>& kept = BlockSlot(slot);
  if (kept == nullptr) kept = std::make_unique<T>();
  return static_cast<T&>(*kept);
}

// Fail() where hardware would: an address that is no multiple of `align`, bytes that are not of the
// block's shared memory.
void CheckAligned(const void* data, size_t align, const char* what);
void CheckShared(const void* data, size_t bytes, const char* what);

// Ends the test program: a kernel did what CUDA does not define.
[[noreturn]] void Fail(const std::string& why);

}  // namespace simt
