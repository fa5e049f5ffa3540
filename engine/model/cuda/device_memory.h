// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Taking memory of the current device in large pieces.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/error.h"
#include "base/status.h"

namespace nibble::engine {

// RESOURCE_EXHAUSTED: "`what` needs ... bytes of device memory, ... are free".
inline absl::Status CheckDeviceMemory(int64_t bytes, std::string_view what) {
  NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceMemory memory, gpu::GetDeviceMemory());
  if (bytes <= memory.free_bytes) return absl::OkStatus();
  return ResourceExhausted("{} needs {} bytes of device memory, {} are free", what, bytes,
                           memory.free_bytes);
}

// What `buffer` holds goes first: it is of a smaller size.
template <typename Buffer>
absl::Status Retake(int64_t count, Buffer* buffer) {
  *buffer = {};
  NIBBLE_ASSIGN_OR_RETURN(*buffer, Buffer::Create(static_cast<size_t>(count)));
  return absl::OkStatus();
}

// The same, all zeros, when it returns: waits for `stream`.
inline absl::Status RetakeZeroed(int64_t bytes, cudaStream_t stream,
                                 gpu::DeviceBuffer<uint8_t>* buffer) {
  NIBBLE_RETURN_IF_ERROR(Retake(bytes, buffer));
  NIBBLE_RETURN_IF_ERROR(gpu::ZeroDevice(buffer->data(), buffer->size_bytes(), stream));
  return gpu::ToStatus(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

}  // namespace nibble::engine
