// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What lies where in a segment (README.md draws it). Plain data and lock-free atomics only: peers
// may map it at different addresses.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"

namespace nibble::comm::shm {

inline constexpr uint64_t kMagic = 0x6d68735f6c62696eULL;  // "nibl_shm"
inline constexpr uint32_t kLayoutVersion = 1;
inline constexpr int kMaxRanks = 64;

// Two cache lines: what one rank writes is not fetched along with its neighbour's line.
inline constexpr size_t kLineBytes = 128;

// Every collective is a row of rounds; in a round a rank has one slot to write. The slots of
// kNumSlots rounds exist at once, so that ranks may be some rounds apart.
inline constexpr uint32_t kNumSlots = 4;  // a power of two
inline constexpr size_t kSlotBytes = size_t{512} << 10;

// Of the rings into one rank, together.
inline constexpr size_t kRingBudgetBytes = size_t{1} << 20;
inline constexpr size_t kMinRingBytes = size_t{16} << 10;

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4);
static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(std::atomic<uint64_t>) == 8);

struct Header {
  std::atomic<uint64_t> magic;  // the maker's last store (release)
  uint32_t layout_version;
  uint32_t num_ranks;
  uint64_t generation;
  uint64_t bytes;  // of the whole segment
  uint64_t first_round;

  // Why the group is broken. Polled by all, written once.
  alignas(kLineBytes) std::atomic<uint32_t> broken;  // Broken; seq_cst
  int32_t code;                                      // absl::StatusCode
  char message[512];                                 // ends with 0
};

enum Broken : uint32_t { kWhole = 0, kBeingBroken = 1, kBroken = 2 };

enum Seat : uint32_t { kEmpty = 0, kSeated = 1, kLeft = 2 };

// A rank's presence and its bed.
struct Doorbell {
  alignas(kLineBytes) std::atomic<uint32_t> sleeping;  // 1: this rank is, or is about to be, asleep
  std::atomic<uint32_t> rings;                         // counted by who wakes it; the futex
  alignas(kLineBytes) std::atomic<int32_t> pid;        // 0 until it came
  std::atomic<uint32_t> seat;                          // Seat
};

// How far a rank is, in rounds. Written by it alone. Wide enough never to wrap: a counter that not
// every collective moves (`reduced`) would look like the future once the others were half of the
// numbers ahead.
struct Progress {
  alignas(kLineBytes) std::atomic<uint64_t> ready;  // its slot of this round is filled
  std::atomic<uint64_t> reduced;                    // its stripe of this round is summed
  std::atomic<uint64_t> done;  // it will not read slots of this round or before it any more
  uint64_t calls[kNumSlots];   // what it takes each round to be part of; written before `ready`
};

// From one rank to another; counters of bytes, which do not wrap within 64 bits.
struct RingState {
  alignas(kLineBytes) std::atomic<uint64_t> written;   // by the sender
  alignas(kLineBytes) std::atomic<uint64_t> consumed;  // by the receiver
};

struct Ring {
  RingState* state = nullptr;
  std::byte* data = nullptr;  // [ring_bytes]
};

// Counters are compared by their difference, so a row of them may begin anywhere.
inline bool Reached(const std::atomic<uint64_t>& counter, uint64_t round) {
  return static_cast<int64_t>(counter.load(std::memory_order_seq_cst) - round) >= 0;
}

// Offsets in bytes, all multiples of kLineBytes; areas of data begin at a page.
struct Layout {
  int num_ranks = 0;
  size_t ring_bytes = 0;  // a power of two
  size_t doorbells = 0;
  size_t progresses = 0;
  size_t ring_states = 0;
  size_t slots = 0;
  size_t rings = 0;
  size_t total_bytes = 0;

  static Layout For(int num_ranks, bool messages_only = false);
};

// A segment in this process's memory.
class Map {
 public:
  // Takes over the mapping.
  Map(void* base, const Layout& layout) : base_(static_cast<std::byte*>(base)), layout_(layout) {}
  ~Map();
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;

  // `fd` of layout.total_bytes, or -1 for private memory.
  static absl::StatusOr<std::shared_ptr<Map>> Make(int fd, const Layout& layout);

  // In memory that is all zero: counters and all but the magic.
  void Initialize(uint64_t generation, uint64_t first_round);

  const Layout& layout() const { return layout_; }
  Header& header() { return *At<Header>(0); }
  Doorbell& doorbell(int rank) { return At<Doorbell>(layout_.doorbells)[rank]; }
  Progress& progress(int rank) { return At<Progress>(layout_.progresses)[rank]; }
  std::byte* slot(int rank, uint64_t round) {
    const auto index = static_cast<size_t>(rank) * kNumSlots + round % kNumSlots;
    return base_ + layout_.slots + index * kSlotBytes;
  }
  Ring ring(int from, int to) {
    const auto index = static_cast<size_t>(from) * static_cast<size_t>(layout_.num_ranks) +
                       static_cast<size_t>(to);
    return {.state = At<RingState>(layout_.ring_states) + index,
            .data = base_ + layout_.rings + index * layout_.ring_bytes};
  }

 private:
  template <typename T>
  T* At(size_t offset) {
    return reinterpret_cast<T*>(base_ + offset);
  }

  std::byte* const base_;
  const Layout layout_;
};

}  // namespace nibble::comm::shm
