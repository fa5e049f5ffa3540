// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/segment_layout.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <new>

namespace nibble::comm::shm {
namespace {

constexpr size_t kPageBytes = 4096;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Layout Layout::For(int num_ranks, bool messages_only) {
  const auto ranks = static_cast<size_t>(num_ranks);
  Layout layout{.num_ranks = num_ranks};
  layout.ring_bytes = std::max(kMinRingBytes, kRingBudgetBytes / std::bit_ceil(ranks));
  layout.doorbells = RoundUp(sizeof(Header), kLineBytes);
  layout.progresses = layout.doorbells + ranks * sizeof(Doorbell);
  layout.ring_states = layout.progresses + ranks * sizeof(Progress);
  layout.slots = RoundUp(layout.ring_states + ranks * ranks * sizeof(RingState), kPageBytes);
  layout.rings = layout.slots + (messages_only ? 0 : ranks * kNumSlots * kSlotBytes);
  layout.total_bytes = layout.rings + ranks * ranks * layout.ring_bytes;
  return layout;
}

Map::~Map() { munmap(base_, layout_.total_bytes); }

absl::StatusOr<std::shared_ptr<Map>> Map::Make(int fd, const Layout& layout) {
  // Populated now: a page fault costs as much as a small all-reduce.
  const int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | MAP_POPULATE;
  void* const base = mmap(nullptr, layout.total_bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (base == MAP_FAILED) {
    return ResourceExhausted("cannot map {} bytes of shared memory: {}", layout.total_bytes,
                             std::strerror(errno));
  }
  return std::make_shared<Map>(base, layout);
}

void Map::Initialize(uint64_t generation, uint64_t first_round) {
  const auto ranks = static_cast<size_t>(layout_.num_ranks);
  Header& head = *new (&header()) Header();
  head.layout_version = kLayoutVersion;
  head.num_ranks = static_cast<uint32_t>(layout_.num_ranks);
  head.generation = generation;
  head.bytes = layout_.total_bytes;
  head.first_round = first_round;
  for (size_t i = 0; i < ranks; ++i) {
    const int rank = static_cast<int>(i);
    new (&doorbell(rank)) Doorbell();
    Progress& counters = *new (&progress(rank)) Progress();
    counters.ready.store(first_round, std::memory_order_relaxed);
    counters.reduced.store(first_round, std::memory_order_relaxed);
    counters.done.store(first_round, std::memory_order_relaxed);
    for (int to = 0; to < layout_.num_ranks; ++to) new (ring(rank, to).state) RingState();
  }
}

}  // namespace nibble::comm::shm
