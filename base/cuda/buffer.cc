// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/cuda/buffer.h"

#include "base/cuda/device.h"
#include "base/cuda/error.h"
#include "base/log.h"

namespace nibble::gpu {

absl::StatusOr<void*> AllocateDevice(size_t bytes) {
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    const auto memory = GetDeviceMemory();
    return ResourceExhausted("{} bytes of device memory are wanted, {} are free", bytes,
                             memory.ok() ? memory->free_bytes : 0);
  }
  NIBBLE_RETURN_IF_ERROR(ToStatus(error, "cudaMalloc"));
  return data;
}

void FreeDevice(void* data) {
  const absl::Status status = ToStatus(cudaFree(data), "cudaFree");
  if (!status.ok()) log::Error("{}", status.ToString());
}

absl::StatusOr<void*> AllocatePinned(size_t bytes) {
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  NIBBLE_RETURN_IF_CUDA_ERROR(cudaMallocHost(&data, bytes));
  return data;
}

void FreePinned(void* data) {
  const absl::Status status = ToStatus(cudaFreeHost(data), "cudaFreeHost");
  if (!status.ok()) log::Error("{}", status.ToString());
}

absl::Status CopyToDevice(void* device, const void* host, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return absl::OkStatus();
  return ToStatus(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream),
                  "cudaMemcpyAsync to the device");
}

absl::Status CopyToDeviceAndWait(void* device, const void* host, size_t bytes,
                                 cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CopyToDevice(device, host, bytes, stream));
  return ToStatus(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

absl::Status CopyToHost(void* host, const void* device, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return absl::OkStatus();
  return ToStatus(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream),
                  "cudaMemcpyAsync to the host");
}

absl::Status CopyOnDevice(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return absl::OkStatus();
  return ToStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream),
                  "cudaMemcpyAsync on the device");
}

absl::Status ZeroDevice(void* device, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return absl::OkStatus();
  return ToStatus(cudaMemsetAsync(device, 0, bytes, stream), "cudaMemsetAsync");
}

}  // namespace nibble::gpu
