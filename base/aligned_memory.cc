// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/aligned_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "base/slab_memory.h"

namespace nibble {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

bool IsMapped(size_t bytes) { return !kAddressSanitizer && bytes >= kLargeBlockBytes; }

// AllocateZeroPages takes these from slabs.
bool IsSlabBlock(size_t bytes) {
  return !kAddressSanitizer && bytes >= SlabMemory::kMinBlockBytes && !IsMapped(bytes);
}

// Never destroyed: objects of static storage may free blocks later than it would be.
SlabMemory& Slabs() {
  static auto* const slabs = new SlabMemory;
  return *slabs;
}

size_t RoundUp(size_t value, size_t step) { return (value + step - 1) / step * step; }

// Fresh pages, aligned by mapping too much and giving back both ends.
void* MapPages(size_t bytes) {
  const size_t size = RoundUp(bytes, 4096);
  const size_t mapped = size + kHugePageBytes;
  void* const memory =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t aligned = RoundUp(begin, kHugePageBytes);
  if (aligned > begin) munmap(memory, aligned - begin);
  const uintptr_t tail = aligned + size;
  if (begin + mapped > tail) munmap(reinterpret_cast<void*>(tail), begin + mapped - tail);
  auto* const block = reinterpret_cast<void*>(aligned);
  madvise(block, size, MADV_HUGEPAGE);  // a wish: ordinary pages do as well
  return block;
}

}  // namespace

void* AllocateMemory(size_t bytes) noexcept {
  if (IsMapped(bytes)) return MapPages(bytes);
  return std::aligned_alloc(kMemoryAlignment, RoundUp(bytes, kMemoryAlignment));
}

void* AllocateZeroPages(size_t bytes) noexcept {
  if (IsSlabBlock(bytes)) return Slabs().Allocate(bytes);
  void* const memory = AllocateMemory(bytes);
  if (memory != nullptr && !IsMapped(bytes)) std::memset(memory, 0, bytes);
  return memory;
}

void FreeMemory(void* memory, size_t bytes) noexcept {
  if (memory == nullptr) return;
  if (IsSlabBlock(bytes) && Slabs().Free(memory, bytes)) return;
  if (IsMapped(bytes)) {
    munmap(memory, RoundUp(bytes, 4096));
  } else {
    std::free(memory);
  }
}

}  // namespace nibble
