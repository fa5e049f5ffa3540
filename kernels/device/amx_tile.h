// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// AMX, one function per instruction. Tiles are numbers 0..7 known when compiling.
//
// Inline assembly and not the compiler's intrinsics: those of g++ 12 declare no memory operands for
// LDTILECFG, TILELOADD and TILESTORED, so that stores to a configuration or a matrix may be dropped
// or moved past them. Everything is static: files that include this must not emit symbols that the
// linker could choose for other CPUs.
#pragma once

#include <cstdint>

namespace nibble::kernels::amx {

// Operand of LDTILECFG: the shape of each tile register. Palette 1 has 8 of at most 16 rows of 64
// bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Before a thread's first use of tiles; zeroes them. The thread pays 8 KiB more per context switch
// until it releases them.
static inline void ConfigureTiles(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}
static inline void ReleaseTiles() { __asm__ volatile("tilerelease" : : : "memory"); }

template <int kTile>
static inline void ZeroTile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// Row r of the tile is at `base` + r * `stride` bytes.
template <int kTile>
static inline void LoadTile(const void* base, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(base), "r"(stride), "i"(kTile)
                   : "memory");
}
template <int kTile>
static inline void StoreTile(void* base, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(base), "r"(stride), "i"(kTile)
                   : "memory");
}

// 32-bit C[m][n] += sum over k and j < 4 of A[m][4 k + j] * B[k][4 n + j]; wraps. A and B signed.
template <int kC, int kA, int kB>
static inline void DotSigned() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}
// float C[m][n] += A[m][2 k + j] * B[k][2 n + j] over bfloat16. From zero, one chain of fused
// multiply-adds over k for j = 0 and one for j = 1; then their sum, then C plus that. Rounds to
// nearest even whatever MXCSR says; subnormal inputs and results are zeros.
template <int kC, int kA, int kB>
static inline void DotBf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

}  // namespace nibble::kernels::amx
