// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Float to storage type, `count` elements, rounded to nearest even, once per instruction set. All
// variants are bit-equal, NaN included (bf16 keeps its high bits, f16 becomes the quiet NaN of its
// sign). Included by files compiled for one instruction set: no library headers that emit code.
#pragma once

#include <cstdint>

namespace nibble::kernels {

using KvConvertFunction = void (*)(const float* in, uint16_t* out, int64_t count);

namespace ref {
void ConvertToBf16(const float* in, uint16_t* out, int64_t count);
void ConvertToF16(const float* in, uint16_t* out, int64_t count);
}  // namespace ref
namespace avx2 {
void ConvertToBf16(const float* in, uint16_t* out, int64_t count);
void ConvertToF16(const float* in, uint16_t* out, int64_t count);
}  // namespace avx2

}  // namespace nibble::kernels
