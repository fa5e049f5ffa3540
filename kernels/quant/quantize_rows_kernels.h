// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// One row of QuantizeRows per instruction set; plain data only, included by sources that are
// compiled for a higher set than the rest of the program.
#pragma once

#include <cstdint>

namespace nibble::kernels {

struct QuantizedRow {
  float scale;
  int32_t sum;
};

// A row whose largest magnitude has these bits or more holds a NaN or an infinity.
inline constexpr int32_t kNonFiniteBits = 0x7f800000;
// Below 2^-119 (bits of that float) 127 / max|x| would leave the float range: the row counts as
// zeros.
inline constexpr int32_t kSmallestMaxBits = 8 << 23;

namespace ref {
QuantizedRow QuantizeRow(const float* x, int64_t k, int8_t* values);
}
namespace avx2 {
QuantizedRow QuantizeRow(const float* x, int64_t k, int8_t* values);
}
namespace avx512vnni {
QuantizedRow QuantizeRow(const float* x, int64_t k, int8_t* values);
}

}  // namespace nibble::kernels
