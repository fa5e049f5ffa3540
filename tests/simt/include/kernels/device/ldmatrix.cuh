// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's form of the header of the same name.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/shared_memory.cuh"
#include "tests/simt/matrices.h"

namespace nibble::kernels::cuda {

inline void LoadMatrixX4(uint32_t (&r)[4], const void* shared_row) {
  simt::LoadMatrix(r, 4, shared_row, /*transposed=*/false);
}
inline void LoadMatrixX4Trans(uint32_t (&r)[4], const void* shared_row) {
  simt::LoadMatrix(r, 4, shared_row, /*transposed=*/true);
}
inline void LoadMatrixX2Trans(uint32_t (&r)[2], const void* shared_row) {
  simt::LoadMatrix(r, 2, shared_row, /*transposed=*/true);
}

}  // namespace nibble::kernels::cuda
