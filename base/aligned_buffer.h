// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Memory aligned to a cache line (64 bytes, also a ZMM register), move-only, not initialized unless
// asked. A moved-from buffer is empty. Large buffers live on huge pages where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "base/aligned_memory.h"

namespace nibble {

template <typename T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static constexpr size_t kAlignment = kMemoryAlignment;

  AlignedBuffer() = default;
  // `count` elements with indeterminate values. Throws std::bad_alloc only when memory is
  // exhausted.
  explicit AlignedBuffer(size_t count) : AlignedBuffer(count, AllocateMemory) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    other.Release();
    return *this;
  }
  ~AlignedBuffer() { Release(); }

  // Zeros that were written: the memory is the process's now.
  static AlignedBuffer Zeroed(size_t count) {
    AlignedBuffer buffer(count);
    if (count > 0) std::memset(buffer.data(), 0, count * sizeof(T));
    return buffer;
  }
  // Zeros whose pages come into being where they are first written: for what the threads of a pool
  // fill and will read.
  static AlignedBuffer ZeroPages(size_t count) { return AlignedBuffer(count, AllocateZeroPages); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t size_bytes() const { return count_ * sizeof(T); }
  bool empty() const { return count_ == 0; }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }
  T* begin() { return data(); }
  T* end() { return data() + count_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + count_; }

 private:
  AlignedBuffer(size_t count, void* (*allocate)(size_t)) : count_(count) {
    if (count == 0) return;
    if (count > SIZE_MAX / 2 / sizeof(T)) throw std::bad_alloc();
    data_ = static_cast<T*>(allocate(count * sizeof(T)));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  void Release() noexcept {
    FreeMemory(data_, count_ * sizeof(T));
    data_ = nullptr;
    count_ = 0;
  }

  T* data_ = nullptr;
  size_t count_ = 0;
};

}  // namespace nibble
