// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Scratch memory of a thread, for ops that would otherwise take and return it in every call.
#pragma once

#include <cstddef>

#include "base/aligned_buffer.h"

namespace nibble::kernels {

// At least `count` elements with indeterminate values, the calling thread's own, until it asks
// again with the same types. Grows and never shrinks. Throws std::bad_alloc when there is no
// memory.
template <typename Purpose, typename T>
T* ThreadScratch(size_t count) {
  thread_local AlignedBuffer<T> buffer;
  if (buffer.size() < count) {
    buffer = AlignedBuffer<T>();  // before the new one: never both
    buffer = AlignedBuffer<T>(count);
  }
  return buffer.data();
}

}  // namespace nibble::kernels
