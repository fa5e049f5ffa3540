// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Rotation of one head, once per instruction set. Included by files compiled for one instruction
// set: no library headers that emit code.
#pragma once

#include <cstdint>

namespace nibble {
enum class Isa;  // base/cpu_features.h
}

namespace nibble::kernels {

// For i in [0, half): (x[i], x[i + half]) is rotated by the angle whose cosine and sine are cos[i]
// and sin[i]. Two products and a sum, each rounded to float, as transformers does it in fp32: all
// variants are bit-equal.
using RotateHeadFunction = void (*)(float* x, const float* cos, const float* sin, int64_t half);
RotateHeadFunction ChooseRotateHead(Isa isa);

namespace ref {
void RotateHead(float* x, const float* cos, const float* sin, int64_t half);
}
namespace avx2 {
void RotateHead(float* x, const float* cos, const float* sin, int64_t half);
}
namespace avx512vnni {
void RotateHead(float* x, const float* cos, const float* sin, int64_t half);
}

}  // namespace nibble::kernels
