// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Columns of one token's sum, once per instruction set. Included by files compiled for one
// instruction set: no library headers that emit code.
#pragma once

#include <cstdint>

namespace nibble::kernels {

inline constexpr int kCombineRows = 8;

struct CombineRow {
  int64_t columns = 0;
  int num_rows = 0;                   // 1..kCombineRows
  const float* y[kCombineRows] = {};  // num_rows of [columns]
  float weights[kCombineRows] = {};
  bool add = false;  // to `out`
  float* out = nullptr;
};

namespace ref {
void CombineColumns(const CombineRow& row);
}
namespace avx2 {
void CombineColumns(const CombineRow& row);
}
namespace avx512vnni {
void CombineColumns(const CombineRow& row);
}

}  // namespace nibble::kernels
