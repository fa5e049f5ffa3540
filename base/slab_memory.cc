// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/slab_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "base/aligned_memory.h"

namespace nibble {
namespace {

constexpr uintptr_t kPageBytes = 4096;

uintptr_t RoundUp(uintptr_t value, uintptr_t step) { return (value + step - 1) / step * step; }

}  // namespace

// At the beginning of its own mapping.
struct SlabMemory::Slab {
  Slab* older;
  size_t used;  // bytes from the beginning
  size_t num_blocks;
};

void* SlabMemory::Allocate(size_t bytes) noexcept {
  const size_t size = RoundUp(bytes, kMemoryAlignment);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (newest_ == nullptr || kSlabBytes - newest_->used < size) {
    void* const memory = AllocateZeroPages(kSlabBytes);
    if (memory == nullptr) return nullptr;
    newest_ = new (memory)
        Slab{.older = newest_, .used = RoundUp(sizeof(Slab), kMemoryAlignment), .num_blocks = 0};
  }
  void* const block = reinterpret_cast<char*>(newest_) + newest_->used;
  newest_->used += size;
  ++newest_->num_blocks;
  return block;
}

bool SlabMemory::Free(void* memory, size_t bytes) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto block = reinterpret_cast<uintptr_t>(memory);
  for (Slab** link = &newest_; *link != nullptr; link = &(*link)->older) {
    Slab* const slab = *link;
    if (block - reinterpret_cast<uintptr_t>(slab) >= kSlabBytes) continue;  // wraps below it
    if (--slab->num_blocks == 0) {
      *link = slab->older;
      FreeMemory(slab, kSlabBytes);
    } else {
      const uintptr_t begin = RoundUp(block, kPageBytes);
      const uintptr_t end = (block + bytes) / kPageBytes * kPageBytes;
      if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
    }
    return true;
  }
  return false;
}

}  // namespace nibble
