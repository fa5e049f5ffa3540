// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Blocks that are too small for huge pages of their own, side by side in mappings that ask for
// them: the weights of a model's experts, read end to end by the thousand.
#pragma once

#include <cstddef>
#include <mutex>

namespace nibble {

// Thread-safe. A block's whole pages go back to the system when it is freed, the mapping with its
// last block; their addresses are not given out again. The mapping goes on asking for huge
// pages, for which the kernel may fill freed ones with zeros again.
class SlabMemory {
 public:
  static constexpr size_t kMinBlockBytes = size_t{64} << 10;
  static constexpr size_t kSlabBytes = size_t{64} << 20;

  // Zeros, aligned to 64 bytes; null when there is no memory. REQUIRES: kMinBlockBytes <= bytes <=
  // kSlabBytes / 2. A page comes into being where it is first written: a huge one by whoever is
  // first of the blocks that share it.
  void* Allocate(size_t bytes) noexcept;
  // False when `memory` is not from here. Holds the mutex while it looks through all slabs.
  bool Free(void* memory, size_t bytes) noexcept;

 private:
  struct Slab;
  std::mutex mutex_;
  Slab* newest_ = nullptr;  // guarded by mutex_, with all slabs
};

}  // namespace nibble
