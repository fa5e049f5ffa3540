// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Loads 8 x 8 matrices of 16-bit elements from shared memory (ldmatrix, sm_80 and later), for the
// whole warp: all lanes execute it together.
//
// A row is 16 bytes, aligned to 16. Lanes 0-7 point to the rows of matrix 0, lanes 8-15 to those
// of matrix 1, and so on; X2 ignores what lanes 16-31 give. Register i of lane l holds, of matrix
// i, row l / 4, elements 2 (l % 4) and 2 (l % 4) + 1 (low, high half):
//
//            elements  0 1    2 3    4 5    6 7
//   row 0    lanes      0      1      2      3
//   row 1               4      5      6      7
//   ...
//   row 7              28     29     30     31
//
// As bytes: register i of lane l holds bytes 4 (l % 4) .. 4 (l % 4) + 3 of row l / 4, so that int8
// fragments (mma.cuh) are loaded with it, too. Transposed: elements (2 (l % 4), l / 4) and
// (2 (l % 4) + 1, l / 4), rows first.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/shared_memory.cuh"

namespace nibble::kernels::cuda {

__device__ __forceinline__ void LoadMatrixX4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(gpu::SharedAddress(shared_row))
               : "memory");
}
__device__ __forceinline__ void LoadMatrixX4Trans(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(gpu::SharedAddress(shared_row))
               : "memory");
}
__device__ __forceinline__ void LoadMatrixX2Trans(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(gpu::SharedAddress(shared_row))
               : "memory");
}

}  // namespace nibble::kernels::cuda
