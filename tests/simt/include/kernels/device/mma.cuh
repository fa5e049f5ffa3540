// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The emulator's form of the header of the same name.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "tests/simt/matrices.h"

namespace nibble::kernels::cuda {

inline void MmaS8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::MmaS8(d, a, b);
}
inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::MmaBf16(d, a, b);
}
inline void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::MmaF16(d, a, b);
}

}  // namespace nibble::kernels::cuda
