// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Kernels that do nothing but one instruction of base/cuda and kernels/device, for tests. All
// pointers are to device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/tensor_map.h"
#include "base/status.h"

namespace nibble::kernels::cuda {

// A, B: rows of 32 bytes, 16 and 8 of them; D [16, 8] is added to.
absl::Status RunMmaS8(const uint8_t* a, const uint8_t* b, int* d, cudaStream_t stream);
absl::Status RunMmaBf16(const uint8_t* a, const uint8_t* b, float* d, cudaStream_t stream);
absl::Status RunMmaF16(const uint8_t* a, const uint8_t* b, float* d, cudaStream_t stream);

// rows [8 num_matrices, 8]; registers [32, num_matrices].
absl::Status RunLoadMatrix(int num_matrices, bool transposed, const uint16_t* rows,
                           uint32_t* registers, cudaStream_t stream);

// y = A [64, 128] * B^T, B [n, 128], added to what y [64, n] holds; a matrix of int8. In two groups
// of two instructions.
absl::Status RunWgmma(int n, const uint8_t* a, const uint8_t* b, int* y, cudaStream_t stream);

// The same of bf16, 64 of them a row, with n = 128.
absl::Status RunWgmmaBf16(const uint8_t* a, const uint8_t* b, float* y, cudaStream_t stream);

// The box of `map` at (x, y) as it lies in shared memory.
absl::Status RunTensorCopy(const gpu::TensorMap& map, int x, int y, uint32_t box_bytes,
                           uint8_t* shared, cudaStream_t stream);

// sums[t] of 256: of value t of each tile of 1 KiB, by a producing warpgroup and two that consume,
// through two buffers.
absl::Status RunBulkPipeline(const uint32_t* tiles, int num_tiles, uint32_t* sums,
                             cudaStream_t stream);

// copied [num_tiles, 64]: the 16 or 4 bytes (T is uint4 or uint32_t) of each thread's neighbor of
// 64, copied by two stages of cp.async; zeros for every fifth thread.
template <typename T>
absl::Status RunCopyAsync(const T* tiles, int num_tiles, T* copied, cudaStream_t stream);

// values [64], written by warp 1 and read by warp 0, that waits for it.
absl::Status RunNamedBarrier(uint32_t* values, cudaStream_t stream);

// Conversions: floats [n] to pairs of 16 bits and back.
struct Converted {
  uint16_t bf16;
  uint16_t half;
  uint32_t bf16_pair;  // with the negative in the high half
  uint32_t half_pair;
  float from_bf16;
  float from_half;
  float from_bf16_high;
  float from_half_high;
};
absl::Status RunConvert(const float* x, Converted* y, int n, cudaStream_t stream);
absl::Status RunExp(const float* x, float* y, int n, cudaStream_t stream);

// Block 0 writes 3n values and says so, block 1 waits and copies: n by the order of a device's
// memory and 2n of a system's, the last n by volatile loads.
absl::Status RunHandOver(int n, uint4* values, uint32_t* flags, uint4* copied, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
