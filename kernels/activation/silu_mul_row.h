// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One row of SiluMul, once per instruction set. Included by files compiled for one instruction set:
// no library headers that emit code.
#pragma once

#include <cstdint>

namespace nibble::kernels {

// y[i] = silu(gate[i]) * up[i], i in [0, count).
using SiluMulRowFunction = void (*)(const float* gate, const float* up, float* y, int64_t count);

namespace ref {
void SiluMulRow(const float* gate, const float* up, float* y, int64_t count);
}
namespace avx2 {
void SiluMulRow(const float* gate, const float* up, float* y, int64_t count);
}
namespace avx512vnni {
void SiluMulRow(const float* gate, const float* up, float* y, int64_t count);
}

}  // namespace nibble::kernels
