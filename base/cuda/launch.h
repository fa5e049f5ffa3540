// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Launching a kernel.
//
//   return gpu::Launch(Kernel<T>, {.grid = {rows}, .block = {256}, .stream = stream}, args);
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "base/cuda/error.h"
#include "base/status.h"

namespace nibble::gpu {

struct LaunchConfig {
  dim3 grid = {1, 1, 1};
  dim3 block = {1, 1, 1};
  size_t shared_bytes = 0;  // dynamic shared memory of a block
  cudaStream_t stream = nullptr;
  // All blocks run at the same time, or the launch fails: for kernels whose blocks wait for each
  // other.
  bool cooperative = false;
};

// More than 48 KiB of dynamic shared memory, on the current device. The limit belongs to the kernel
// and not to a launch: it is raised and never lowered, so that no thread takes another's.
// Thread-safe.
absl::Status OptInToShared(const void* kernel, size_t bytes);

// Blocks of a kernel that the current device holds at the same time: the largest cooperative grid.
// What the device says, which is less under a sanitizer or a share of MPS. Thread-safe; a lookup
// after the first call of its arguments.
absl::StatusOr<int64_t> ResidentBlocks(const void* kernel, int block_threads, size_t shared_bytes);
template <typename... Parameters>
absl::StatusOr<int64_t> ResidentBlocks(void (*kernel)(Parameters...), int block_threads,
                                       size_t shared_bytes) {
  return ResidentBlocks(reinterpret_cast<const void*>(kernel), block_threads, shared_bytes);
}

// Arguments are converted to the kernel's parameters and copied. More than 48 KiB of shared memory
// is opted in to. A grid without blocks is no launch.
template <typename... Parameters, typename... Args>
absl::Status Launch(void (*kernel)(Parameters...), const LaunchConfig& config, Args&&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return absl::OkStatus();
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  if (config.shared_bytes > kDefaultSharedBytes) {
    NIBBLE_RETURN_IF_ERROR(
        OptInToShared(reinterpret_cast<const void*>(kernel), config.shared_bytes));
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = config.grid;
  launch.blockDim = config.block;
  launch.dynamicSmemBytes = config.shared_bytes;
  launch.stream = config.stream;
  launch.attrs = &attribute;
  launch.numAttrs = config.cooperative ? 1 : 0;
  return ToStatus(cudaLaunchKernelEx(&launch, kernel, static_cast<Parameters>(args)...),
                  "cudaLaunchKernelEx");
}

}  // namespace nibble::gpu
