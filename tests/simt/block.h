// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The threads of a block and where they meet.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/simt/fiber.h"
#include "tests/simt/simt.h"

namespace simt {

inline constexpr int kWarpSize = 32;
inline constexpr int kWarpgroupSize = 128;

class Block;

struct Thread {
  explicit Thread(void (*run)(void*)) : fiber(run, this) {}
  void Begin(Block* of, const Coordinates& at, int index);
  void End();
  // Until Continue(), somebody else's doing; `what` for complaints.
  void Pause(const char* what);
  void Continue() {
    state = kReady;
    barrier = kNoBarrier;
  }

  enum State : uint8_t { kReady, kBlocked, kEnded };
  static constexpr int8_t kNoBarrier = -1;
  State state = kEnded;
  int8_t barrier = kNoBarrier;  // that it is blocked at
  int linear = 0;               // in the block
  Block* block = nullptr;
  const char* waits_for = nullptr;
  Coordinates where;
  std::array<std::unique_ptr<Kept>, kNumSlots> slots;
  Fiber fiber;
};

// Inside of a kernel.
Thread& CurrentThread();

// An instruction that threads of a warp or a warpgroup execute together.
template <int kSize>
struct Meeting {
  const char* what = nullptr;  // null: over
  unsigned mask = 0;           // of a warp
  int num_missing = 0;
  std::array<void*, kSize> args{};
  std::array<Thread*, kSize> threads{};
};
// Of one warp or warpgroup: several where its threads went different ways.
template <int kSize>
using Meetings = std::vector<Meeting<kSize>>;

class Block {
 public:
  void Begin(size_t shared_bytes, std::vector<Thread*> threads);
  void End();
  void ThreadEnded();

  uint8_t* shared() const { return shared_; }
  size_t shared_bytes() const { return shared_bytes_; }
  std::unique_ptr<Kept>& slot(int index) { return slots_[static_cast<size_t>(index)]; }

  // Barrier 0 is __syncthreads(), of all threads alive.
  void Arrive(int id, int count);
  Meetings<kWarpSize>& WarpOf(const Thread& thread) {
    return warps_[static_cast<size_t>(thread.linear / kWarpSize)];
  }
  Meetings<kWarpgroupSize>& WarpgroupOf(const Thread& thread) {
    return warpgroups_[static_cast<size_t>(thread.linear / kWarpgroupSize)];
  }

 private:
  void Release(int id);

  std::vector<Thread*> threads_;
  int num_alive_ = 0;
  std::vector<uint8_t> shared_storage_;
  uint8_t* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  struct Barrier {
    int arrived = 0;
    int count = 0;
  };
  std::array<Barrier, 16> barriers_;
  std::vector<Meetings<kWarpSize>> warps_;
  std::vector<Meetings<kWarpgroupSize>> warpgroups_;
  std::array<std::unique_ptr<Kept>, kNumSlots> slots_;
};

}  // namespace simt
