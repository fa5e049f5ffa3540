// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One row of RMSNorm, once per instruction set. Included by files compiled for one instruction set:
// no library headers that emit code.
#pragma once

#include <cstdint>

namespace nibble::kernels {

struct RmsNormRow {
  int64_t hidden = 0;
  float* x = nullptr;            // [hidden]; x += delta in place when delta is given
  const float* delta = nullptr;  // [hidden] or null
  const float* weight = nullptr;
  float epsilon = 0.0F;
  float* y = nullptr;  // [hidden], may equal x
};

namespace ref {
void NormalizeRow(const RmsNormRow& row);
}
namespace avx2 {
void NormalizeRow(const RmsNormRow& row);
}
namespace avx512vnni {
void NormalizeRow(const RmsNormRow& row);
}

}  // namespace nibble::kernels
