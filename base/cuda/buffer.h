// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Memory of the current device, and host memory that it copies from and to without staging. Each
// has one owner; nothing is zeroed.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/status.h"

namespace nibble::gpu {

// Untyped, so that what fails is in one place. nullptr for 0 bytes. RESOURCE_EXHAUSTED names the
// bytes wanted and free.
absl::StatusOr<void*> AllocateDevice(size_t bytes);
void FreeDevice(void* data);
absl::StatusOr<void*> AllocatePinned(size_t bytes);
void FreePinned(void* data);

template <typename T, absl::StatusOr<void*> (*Allocate)(size_t), void (*Free)(void*)>
class Buffer {
 public:
  static absl::StatusOr<Buffer> Create(size_t count) {
    if (count > SIZE_MAX / sizeof(T)) {
      return ResourceExhausted("{} elements of {} bytes are wanted", count, sizeof(T));
    }
    NIBBLE_ASSIGN_OR_RETURN(void* data, Allocate(count * sizeof(T)));
    Buffer buffer;
    buffer.data_ = static_cast<T*>(data);
    buffer.size_ = count;
    return buffer;
  }
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) Free(data_);
  }

  T* data() const { return data_; }
  size_t size() const { return size_; }  // elements
  size_t size_bytes() const { return size_ * sizeof(T); }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

template <typename T>
using DeviceBuffer = Buffer<T, AllocateDevice, FreeDevice>;
template <typename T>
using PinnedBuffer = Buffer<T, AllocatePinned, FreePinned>;

// Copies are ordered in `stream`. A host side that is not pinned is staged by the driver before the
// call returns (to the device) or when it is done (from it).
absl::Status CopyToDevice(void* device, const void* host, size_t bytes, cudaStream_t stream);
absl::Status CopyToHost(void* host, const void* device, size_t bytes, cudaStream_t stream);
absl::Status CopyOnDevice(void* to, const void* from, size_t bytes, cudaStream_t stream);
absl::Status ZeroDevice(void* device, size_t bytes, cudaStream_t stream);
// Waits for the stream, as everything that is given host memory of a short life has to.
absl::Status CopyToDeviceAndWait(void* device, const void* host, size_t bytes, cudaStream_t stream);

// `values` in memory of their own on the device, when it returns.
template <typename T>
absl::StatusOr<DeviceBuffer<T>> Upload(const std::vector<T>& values, cudaStream_t stream) {
  NIBBLE_ASSIGN_OR_RETURN(auto buffer, DeviceBuffer<T>::Create(values.size()));
  NIBBLE_RETURN_IF_ERROR(
      CopyToDeviceAndWait(buffer.data(), values.data(), buffer.size_bytes(), stream));
  return buffer;
}

}  // namespace nibble::gpu
