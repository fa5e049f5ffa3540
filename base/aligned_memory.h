// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Memory for AlignedBuffer: cache-line aligned; large blocks come straight from the kernel, start
// on a 2 MiB boundary and ask for huge pages, because weights are read end to end in every step and
// a 4 KiB page costs an address translation every 64 cache lines. Where huge pages are not allowed
// (/sys/kernel/mm/transparent_hugepage/enabled: never) these are ordinary pages.
#pragma once

#include <cstddef>

namespace nibble {

inline constexpr size_t kMemoryAlignment = 64;
// AddressSanitizer watches what malloc gives, not what mmap does: under it all blocks are malloc's.
// g++ and clang++ say in different ways that it is on.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kAddressSanitizer = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif
#else
inline constexpr bool kAddressSanitizer = false;
#endif
// From here on a block is large.
inline constexpr size_t kLargeBlockBytes = size_t{4} << 20;

// `bytes` > 0 of indeterminate memory; null when there is none.
void* AllocateMemory(size_t bytes) noexcept;
// The same, reading as zeros, for what stays: from 64 KiB on in huge pages (slab_memory.h), each on
// the memory node of the thread that first writes into it, be it into a neighbouring block.
void* AllocateZeroPages(size_t bytes) noexcept;
// `bytes` as allocated; null is allowed. 64 KiB to 4 MiB: takes a global mutex, looks at all slabs.
void FreeMemory(void* memory, size_t bytes) noexcept;

}  // namespace nibble
