// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Matrix instructions of a warp or a warpgroup. Called by the wrappers of include/; the contracts
// are in the product's headers of the same names.
#pragma once

#include <cstdint>

namespace simt {

void LoadMatrix(uint32_t* registers, int num_matrices, const void* row, bool transposed);
void MmaS8(int* d, const uint32_t* a, const uint32_t* b);
void MmaBf16(float* d, const uint32_t* a, const uint32_t* b);
void MmaF16(float* d, const uint32_t* a, const uint32_t* b);

}  // namespace simt
