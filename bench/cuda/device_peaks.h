// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a device can do at all: bytes from its memory, products of int8 and of bf16.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/device.h"
#include "base/status.h"

namespace nibble::bench {

// Reads `bytes` (a multiple of 16) of device memory once. `sink`: 4 bytes of device memory, not
// written but for one sum of all that cannot be.
absl::Status LaunchRead(const void* data, int64_t bytes, uint32_t* sink,
                        const gpu::DeviceCaps& caps, cudaStream_t stream);

// Multiplies int8 on every multiprocessor, from registers (and, with wgmma, shared memory) alone.
// `rounds` of the inner loop; returns the operations (2 a product) of the launch.
absl::StatusOr<double> LaunchInt8Peak(int rounds, uint32_t* sink, const gpu::DeviceCaps& caps,
                                      cudaStream_t stream);
// The same of bf16, with sums in float32.
absl::StatusOr<double> LaunchBf16Peak(int rounds, uint32_t* sink, const gpu::DeviceCaps& caps,
                                      cudaStream_t stream);

}  // namespace nibble::bench
