// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Descriptions of matrices in device memory, from which the tensor copy engine (sm_90 and later)
// copies boxes to shared memory: TensorCopy2d of barrier.cuh. Made on the host once, given to
// kernels as `const __grid_constant__ gpu::TensorMap map` parameters.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace nibble::gpu {

struct alignas(64) TensorMap {
  uint8_t opaque[128];
};

// Row-major [outer, inner]. What a box holds beyond the matrix reads as zeros.
struct Tensor2d {
  const void* global = nullptr;  // device memory; aligned to 16 bytes
  int element_bytes = 1;         // 1, 2 or 4
  int64_t inner = 0;             // elements of a row; 1 .. 2^32
  int64_t outer = 0;             // rows; 1 .. 2^32
  int64_t row_stride_bytes = 0;  // a multiple of 16, below 2^40
  int box_inner = 0;             // elements; 1 .. 256, a multiple of 16 bytes
  int box_outer = 0;             // rows; 1 .. 256
  // A box has rows of 128 bytes in shared memory, and the 16-byte chunk c of the row at address p
  // is stored as chunk c ^ (p / 128 % 8): as SwizzledDescriptor128 of wgmma.cuh reads it, and
  // without bank conflicts for ldmatrix. Else rows follow each other as they are.
  bool swizzle_128 = true;
};

// INVALID_ARGUMENT names the field and its limit. UNAVAILABLE where the driver cannot make maps.
absl::StatusOr<TensorMap> MakeTensorMap2d(const Tensor2d& tensor);

// Of the driver; `tensor` was checked.
absl::Status EncodeTensorMap2d(const Tensor2d& tensor, TensorMap* map);

}  // namespace nibble::gpu
