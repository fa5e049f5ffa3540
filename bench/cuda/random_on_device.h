// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What kernels compute with where values do not matter (bench/random_weight.h), in device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/buffer.h"
#include "base/status.h"

namespace nibble::bench {

enum class RandomKind { kBits, kBf16 };
// A few MiB again and again.
absl::StatusOr<gpu::DeviceBuffer<uint16_t>> RandomOnDevice(RandomKind kind, int64_t count,
                                                           uint32_t seed, cudaStream_t stream);

}  // namespace nibble::bench
