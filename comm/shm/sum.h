// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Sums over ranks, once per instruction set; all give the same bits. Included by files compiled for
// one instruction set: no library headers that emit code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::comm::shm {

// out[i] = sources[0][i] + sources[1][i] + ... in this order, for i in 0..count - 1; num_sources
// >= 1. `out` may be one of the sources, and does not overlap them otherwise.
using SumFunction = void (*)(const float* const* sources, int num_sources, float* out,
                             int64_t count);

namespace ref {
void Sum(const float* const* sources, int num_sources, float* out, int64_t count);
}
namespace avx2 {
void Sum(const float* const* sources, int num_sources, float* out, int64_t count);
}
namespace avx512vnni {
void Sum(const float* const* sources, int num_sources, float* out, int64_t count);
}

}  // namespace nibble::comm::shm
