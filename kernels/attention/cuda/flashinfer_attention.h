// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// AttentionBackend::kFlashInfer: chunks of bfloat16 models by FlashInfer's kernels, all else by
// kNibble's (kFlashInferDecode: decode too). In builds with NIBBLE_FLASHINFER only, and never in
// the emulator.
#pragma once

#include <memory>

#include "base/cuda/device.h"
#include "base/status.h"
#include "kernels/attention/cuda/paged_attention.h"

namespace nibble::kernels::cuda {

// UNIMPLEMENTED, naming the field and the limit, for a shape that it does not have.
absl::Status CheckFlashInferShape(const AttentionShape& shape, const gpu::DeviceCaps& caps);

// REQUIRES: CheckFlashInferShape() is OK. `nibble` is of the same shape and limits.
absl::StatusOr<std::unique_ptr<DeviceAttention>> CreateFlashInferAttention(
    const AttentionShape& shape, const AttentionLimits& limits, const gpu::DeviceCaps& caps,
    std::unique_ptr<DeviceAttention> nibble, bool takes_decode);

}  // namespace nibble::kernels::cuda
