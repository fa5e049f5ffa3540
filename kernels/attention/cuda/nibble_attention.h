// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// AttentionBackend::kNibble.
#pragma once

#include <memory>

#include "base/cuda/device.h"
#include "base/status.h"
#include "kernels/attention/cuda/paged_attention.h"

namespace nibble::kernels::cuda {

// REQUIRES: shape and limits that CheckAttentionShape() takes.
absl::StatusOr<std::unique_ptr<DeviceAttention>> CreateNibbleAttention(
    const AttentionShape& shape, const AttentionLimits& limits, const gpu::DeviceCaps& caps);

// INVALID_ARGUMENT for a cache or matrices that are not of the shape.
absl::Status CheckAttentionArgs(const AttentionShape& shape, const KvCacheView& cache,
                                const AttentionArgs& args);

}  // namespace nibble::kernels::cuda
