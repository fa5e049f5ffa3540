// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Launching a kernel.
//
//   return gpu::Launch(Kernel<T>, {.grid = {rows}, .block = {256}, .stream = stream}, args);
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

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

// Arguments are converted to the kernel's parameters and copied. More than 48 KiB of shared memory
// is opted in to. A grid without blocks is no launch.
template <typename... Parameters, typename... Args>
absl::Status Launch(void (*kernel)(Parameters...), const LaunchConfig& config, Args&&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return absl::OkStatus();
  constexpr size_t kDefaultSharedBytes = 48 * 1024;
  if (config.shared_bytes > kDefaultSharedBytes) {
    NIBBLE_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(kernel,
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(config.shared_bytes)));
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
