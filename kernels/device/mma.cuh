// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// D = A * B^T + D of small matrices in registers (mma.sync, sm_80 and later), for the whole warp:
// all lanes execute it together. B^T is "col" of the instruction: row n of B is a column.
//
// With g = lane / 4 and t = lane % 4:
//
//   MmaS8: A [16, 32], B [8, 32] of int8; D [16, 8] of int32, sums wrap around
//     a[0]  A[g]    [4t .. 4t+3]         a[2]  A[g]    [4t+16 .. 4t+19]
//     a[1]  A[g+8]  [4t .. 4t+3]         a[3]  A[g+8]  [4t+16 .. 4t+19]
//     b[0]  B[g]    [4t .. 4t+3]         b[1]  B[g]    [4t+16 .. 4t+19]      lowest k in byte 0
//
//   MmaBf16, MmaF16: A [16, 16], B [8, 16] of 16-bit floats; D [16, 8] of float32
//     a[0]  A[g]    [2t, 2t+1]           a[2]  A[g]    [2t+8, 2t+9]
//     a[1]  A[g+8]  [2t, 2t+1]           a[3]  A[g+8]  [2t+8, 2t+9]
//     b[0]  B[g]    [2t, 2t+1]           b[1]  B[g]    [2t+8, 2t+9]          lower k in bits 0-15
//
//   D of both
//     d[0]  D[g]    [2t]                 d[1]  D[g]    [2t+1]
//     d[2]  D[g+8]  [2t]                 d[3]  D[g+8]  [2t+1]
//
// In bytes, A and B are the same for all three: ldmatrix.cuh loads them from rows of shared memory
// (A: matrices rows 0-7 / k low, rows 8-15 / k low, rows 0-7 / k high, rows 8-15 / k high).
// The order in which float products are added is the hardware's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::kernels::cuda {

__device__ __forceinline__ void MmaS8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void MmaF16(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace nibble::kernels::cuda
