// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The matrix instruction of a warpgroup (128 threads, four warps in a row from a multiple of four),
// sm_90a alone; it traps elsewhere. It runs while the threads go on.
//
//   D [64, N] += A [64, 32] * B^T, B [N, 32]; int8, sums in int32
//
// A comes from registers, B from shared memory. Warp w of the warpgroup has rows 16w .. 16w+15 of A
// and D; in it, with g = lane / 4 and t = lane % 4, A is as in mma.cuh and D has N/8 times its
// columns:
//
//     a[0]  A[16w+g]    [4t .. 4t+3]         a[2]  A[16w+g]    [4t+16 .. 4t+19]
//     a[1]  A[16w+g+8]  [4t .. 4t+3]         a[3]  A[16w+g+8]  [4t+16 .. 4t+19]
//     d[4j]    D[16w+g]   [8j+2t]            d[4j+1]  D[16w+g]   [8j+2t+1]
//     d[4j+2]  D[16w+g+8] [8j+2t]            d[4j+3]  D[16w+g+8] [8j+2t+1]
//
// B in shared memory: rows of 128 bytes (128 k, four instructions), eight rows an atom of 1024
// bytes aligned to 1024, atom after atom; 16-byte chunk c of row n lies at chunk c ^ (n % 8). This
// is what TensorCopy2d writes with swizzle_128 and boxes of 128 bytes x N rows.
//
//   byte     0    16   32   48   64   80   96   112
//   row 0   c0   c1   c2   c3   c4   c5   c6   c7
//   row 1   c1   c0   c3   c2   c5   c4   c7   c6
//   row 2   c2   c3   c0   c1   c6   c7   c4   c5     ...
//
// Order of calls, by all threads of the warpgroup:
//
//   WgmmaFence();                              // registers of A and D were written before
//   WgmmaS8<N>(d, a, descriptor, accumulate);  // several; sums of one d are in order
//   WgmmaCommit();                             // a group
//   WgmmaWait<0>();                            // until at most so many groups are under way
//
// From WgmmaS8 to the wait for its group the registers of `d` and `a` are the hardware's: they must
// not be read or written, and the arrays stay in scope. After the wait WgmmaFenceOperand(d[i])
// keeps the compiler from moving reads before it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/cuda/shared_memory.cuh"

namespace nibble::kernels::cuda {

// Where 32 k of B begin: the first atom plus 0, 32, 64 or 96 bytes. Adding 2 to a descriptor
// advances it by 32 bytes, too.
__device__ __forceinline__ uint64_t SwizzledDescriptor128(const void* shared) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kAtomStride = uint64_t{1024 / 16} << 32;
  constexpr uint64_t kUnused = uint64_t{1} << 16;  // the stride along k; rows are one atom wide
  return kSwizzle128 | kAtomStride | kUnused | (gpu::SharedAddress(shared) >> 4 & 0x3FFFU);
}

__device__ __forceinline__ void WgmmaFence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void WgmmaCommit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void WgmmaFenceOperand(int& value) {
  asm volatile("" : "+r"(value)::"memory");
}
__device__ __forceinline__ void WgmmaFenceOperand(float& value) {
  asm volatile("" : "+f"(value)::"memory");
}

// The registers of a thread of this warpgroup from here on: a multiple of 8, 24 .. 256. A warpgroup
// that wants more waits until others have given theirs back. Only in kernels of
// __launch_bounds__(threads, 1): the compiler must know how many a thread starts with.
template <int kCount>
__device__ __forceinline__ void RegistersIncrease() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#else
  __trap();
#endif
}
template <int kCount>
__device__ __forceinline__ void RegistersDecrease() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#else
  __trap();
#endif
}

// ---- One form for each N: the operands are spelled out ----
// clang-format off
#define NIBBLE_WGMMA_NAMES_0_3 \
  "%0, %1, %2, %3"
#define NIBBLE_WGMMA_D_0_3(c) \
  c(d[0]), c(d[1]), c(d[2]), c(d[3])
#define NIBBLE_WGMMA_NAMES_4_7 \
  "%4, %5, %6, %7"
#define NIBBLE_WGMMA_D_4_7(c) \
  c(d[4]), c(d[5]), c(d[6]), c(d[7])
#define NIBBLE_WGMMA_NAMES_8_15 \
  "%8, %9, %10, %11, %12, %13, %14, %15"
#define NIBBLE_WGMMA_D_8_15(c) \
  c(d[8]), c(d[9]), c(d[10]), c(d[11]), c(d[12]), c(d[13]), \
  c(d[14]), c(d[15])
#define NIBBLE_WGMMA_NAMES_16_31 \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NIBBLE_WGMMA_D_16_31(c) \
  c(d[16]), c(d[17]), c(d[18]), c(d[19]), c(d[20]), c(d[21]), \
  c(d[22]), c(d[23]), c(d[24]), c(d[25]), c(d[26]), c(d[27]), \
  c(d[28]), c(d[29]), c(d[30]), c(d[31])
#define NIBBLE_WGMMA_NAMES_32_47 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NIBBLE_WGMMA_D_32_47(c) \
  c(d[32]), c(d[33]), c(d[34]), c(d[35]), c(d[36]), c(d[37]), \
  c(d[38]), c(d[39]), c(d[40]), c(d[41]), c(d[42]), c(d[43]), \
  c(d[44]), c(d[45]), c(d[46]), c(d[47])
#define NIBBLE_WGMMA_NAMES_48_63 \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NIBBLE_WGMMA_D_48_63(c) \
  c(d[48]), c(d[49]), c(d[50]), c(d[51]), c(d[52]), c(d[53]), \
  c(d[54]), c(d[55]), c(d[56]), c(d[57]), c(d[58]), c(d[59]), \
  c(d[60]), c(d[61]), c(d[62]), c(d[63])
#define NIBBLE_WGMMA_NAMES_64_95 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NIBBLE_WGMMA_D_64_95(c) \
  c(d[64]), c(d[65]), c(d[66]), c(d[67]), c(d[68]), c(d[69]), \
  c(d[70]), c(d[71]), c(d[72]), c(d[73]), c(d[74]), c(d[75]), \
  c(d[76]), c(d[77]), c(d[78]), c(d[79]), c(d[80]), c(d[81]), \
  c(d[82]), c(d[83]), c(d[84]), c(d[85]), c(d[86]), c(d[87]), \
  c(d[88]), c(d[89]), c(d[90]), c(d[91]), c(d[92]), c(d[93]), \
  c(d[94]), c(d[95])
#define NIBBLE_WGMMA_NAMES_96_127 \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define NIBBLE_WGMMA_D_96_127(c) \
  c(d[96]), c(d[97]), c(d[98]), c(d[99]), c(d[100]), c(d[101]), \
  c(d[102]), c(d[103]), c(d[104]), c(d[105]), c(d[106]), c(d[107]), \
  c(d[108]), c(d[109]), c(d[110]), c(d[111]), c(d[112]), c(d[113]), \
  c(d[114]), c(d[115]), c(d[116]), c(d[117]), c(d[118]), c(d[119]), \
  c(d[120]), c(d[121]), c(d[122]), c(d[123]), c(d[124]), c(d[125]), \
  c(d[126]), c(d[127])
#define NIBBLE_WGMMA_LIST(...) __VA_ARGS__
// After D come A, the descriptor and `accumulate`; a0 .. p are their numbers.
#define NIBBLE_WGMMA_FORM(form, names, operands, a0, a1, a2, a3, b, p, modifiers)                \
  asm volatile(                                                                                  \
      "{\n"                                                                                      \
      ".reg .pred p;\n"                                                                          \
      "setp.ne.b32 p, " p ", 0;\n"                                                               \
      "wgmma.mma_async.sync.aligned." form " {" names "}, "                                      \
      "{" a0 ", " a1 ", " a2 ", " a3 "}, " b ", p" modifiers ";\n"                               \
      "}\n"                                                                                      \
      : operands                                                                                 \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor),                           \
        "r"(static_cast<int>(accumulate)))
#define NIBBLE_WGMMA(n, names, operands, a0, a1, a2, a3, b, p)                                   \
  NIBBLE_WGMMA_FORM("m64n" n "k32.s32.s8.s8", names, NIBBLE_WGMMA_LIST(operands), a0, a1, a2, a3, \
                    b, p, "")

// `accumulate` false: D = A * B^T, what d held is not read. `a` comes from registers alone: unpack
// all of a group's before WgmmaFence().
template <int kN>
__device__ __forceinline__ void WgmmaS8(int (&d)[kN / 2], const uint32_t (&a)[4],
                                        uint64_t b_descriptor, bool accumulate) {
  static_assert(kN == 8 || kN == 16 || kN == 32 || kN == 64 || kN == 96 || kN == 128 ||
                kN == 192 || kN == 256);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kN == 8) {
    NIBBLE_WGMMA("8",
                 NIBBLE_WGMMA_NAMES_0_3,
                 NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+r")),
                 "%4", "%5", "%6", "%7", "%8", "%9");
  } else if constexpr (kN == 16) {
    NIBBLE_WGMMA("16",
                 NIBBLE_WGMMA_NAMES_0_3 ", " NIBBLE_WGMMA_NAMES_4_7,
                 NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+r"), NIBBLE_WGMMA_D_4_7("+r")),
                 "%8", "%9", "%10", "%11", "%12", "%13");
  } else if constexpr (kN == 32) {
    NIBBLE_WGMMA("32",
                 NIBBLE_WGMMA_NAMES_0_3 ", " NIBBLE_WGMMA_NAMES_4_7 ", " NIBBLE_WGMMA_NAMES_8_15,
                 NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+r"), NIBBLE_WGMMA_D_4_7("+r"), NIBBLE_WGMMA_D_8_15("+r")),
                 "%16", "%17", "%18", "%19", "%20", "%21");
  } else if constexpr (kN == 64) {
    NIBBLE_WGMMA("64",
                 NIBBLE_WGMMA_NAMES_0_3 ", " NIBBLE_WGMMA_NAMES_4_7 ", "
                 NIBBLE_WGMMA_NAMES_8_15 ", " NIBBLE_WGMMA_NAMES_16_31,
                 NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+r"), NIBBLE_WGMMA_D_4_7("+r"), NIBBLE_WGMMA_D_8_15("+r"),
                                   NIBBLE_WGMMA_D_16_31("+r")),
                 "%32", "%33", "%34", "%35", "%36", "%37");
  } else if constexpr (kN == 96) {
    NIBBLE_WGMMA("96",
                 NIBBLE_WGMMA_NAMES_0_3 ", " NIBBLE_WGMMA_NAMES_4_7 ", "
                 NIBBLE_WGMMA_NAMES_8_15 ", " NIBBLE_WGMMA_NAMES_16_31 ", "
                 NIBBLE_WGMMA_NAMES_32_47,
                 NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+r"), NIBBLE_WGMMA_D_4_7("+r"), NIBBLE_WGMMA_D_8_15("+r"),
                                   NIBBLE_WGMMA_D_16_31("+r"), NIBBLE_WGMMA_D_32_47("+r")),
                 "%48", "%49", "%50", "%51", "%52", "%53");
  } else if constexpr (kN == 128) {
    NIBBLE_WGMMA("128",
                 NIBBLE_WGMMA_NAMES_0_3 ", " NIBBLE_WGMMA_NAMES_4_7 ", "
                 NIBBLE_WGMMA_NAMES_8_15 ", " NIBBLE_WGMMA_NAMES_16_31 ", "
                 NIBBLE_WGMMA_NAMES_32_47 ", " NIBBLE_WGMMA_NAMES_48_63,
                 NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+r"), NIBBLE_WGMMA_D_4_7("+r"), NIBBLE_WGMMA_D_8_15("+r"),
                                   NIBBLE_WGMMA_D_16_31("+r"), NIBBLE_WGMMA_D_32_47("+r"),
                                   NIBBLE_WGMMA_D_48_63("+r")),
                 "%64", "%65", "%66", "%67", "%68", "%69");
  } else if constexpr (kN == 192) {
    NIBBLE_WGMMA("192",
                 NIBBLE_WGMMA_NAMES_0_3 ", " NIBBLE_WGMMA_NAMES_4_7 ", "
                 NIBBLE_WGMMA_NAMES_8_15 ", " NIBBLE_WGMMA_NAMES_16_31 ", "
                 NIBBLE_WGMMA_NAMES_32_47 ", " NIBBLE_WGMMA_NAMES_48_63 ", "
                 NIBBLE_WGMMA_NAMES_64_95,
                 NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+r"), NIBBLE_WGMMA_D_4_7("+r"), NIBBLE_WGMMA_D_8_15("+r"),
                                   NIBBLE_WGMMA_D_16_31("+r"), NIBBLE_WGMMA_D_32_47("+r"),
                                   NIBBLE_WGMMA_D_48_63("+r"), NIBBLE_WGMMA_D_64_95("+r")),
                 "%96", "%97", "%98", "%99", "%100", "%101");
  } else if constexpr (kN == 256) {
    NIBBLE_WGMMA("256",
                 NIBBLE_WGMMA_NAMES_0_3 ", " NIBBLE_WGMMA_NAMES_4_7 ", "
                 NIBBLE_WGMMA_NAMES_8_15 ", " NIBBLE_WGMMA_NAMES_16_31 ", "
                 NIBBLE_WGMMA_NAMES_32_47 ", " NIBBLE_WGMMA_NAMES_48_63 ", "
                 NIBBLE_WGMMA_NAMES_64_95 ", " NIBBLE_WGMMA_NAMES_96_127,
                 NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+r"), NIBBLE_WGMMA_D_4_7("+r"), NIBBLE_WGMMA_D_8_15("+r"),
                                   NIBBLE_WGMMA_D_16_31("+r"), NIBBLE_WGMMA_D_32_47("+r"),
                                   NIBBLE_WGMMA_D_48_63("+r"), NIBBLE_WGMMA_D_64_95("+r"),
                                   NIBBLE_WGMMA_D_96_127("+r")),
                 "%128", "%129", "%130", "%131", "%132", "%133");
  }
#else
  __trap();
#endif
}

// The same of 16-bit floats: A [64, 16], B [N, 16], sums in float32. In bytes, A and B are as above;
// k has half as many elements.
template <int kN>
__device__ __forceinline__ void WgmmaBf16(float (&d)[kN / 2], const uint32_t (&a)[4],
                                          uint64_t b_descriptor, bool accumulate) {
  static_assert(kN == 128);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  NIBBLE_WGMMA_FORM("m64n128k16.f32.bf16.bf16",
                    NIBBLE_WGMMA_NAMES_0_3 ", " NIBBLE_WGMMA_NAMES_4_7 ", "
                    NIBBLE_WGMMA_NAMES_8_15 ", " NIBBLE_WGMMA_NAMES_16_31 ", "
                    NIBBLE_WGMMA_NAMES_32_47 ", " NIBBLE_WGMMA_NAMES_48_63,
                    NIBBLE_WGMMA_LIST(NIBBLE_WGMMA_D_0_3("+f"), NIBBLE_WGMMA_D_4_7("+f"),
                                      NIBBLE_WGMMA_D_8_15("+f"), NIBBLE_WGMMA_D_16_31("+f"),
                                      NIBBLE_WGMMA_D_32_47("+f"), NIBBLE_WGMMA_D_48_63("+f")),
                    "%64", "%65", "%66", "%67", "%68", "%69", ", 1, 1, 0");
#else
  __trap();
#endif
}

#undef NIBBLE_WGMMA
#undef NIBBLE_WGMMA_FORM
#undef NIBBLE_WGMMA_LIST
#undef NIBBLE_WGMMA_NAMES_0_3
#undef NIBBLE_WGMMA_D_0_3
#undef NIBBLE_WGMMA_NAMES_4_7
#undef NIBBLE_WGMMA_D_4_7
#undef NIBBLE_WGMMA_NAMES_8_15
#undef NIBBLE_WGMMA_D_8_15
#undef NIBBLE_WGMMA_NAMES_16_31
#undef NIBBLE_WGMMA_D_16_31
#undef NIBBLE_WGMMA_NAMES_32_47
#undef NIBBLE_WGMMA_D_32_47
#undef NIBBLE_WGMMA_NAMES_48_63
#undef NIBBLE_WGMMA_D_48_63
#undef NIBBLE_WGMMA_NAMES_64_95
#undef NIBBLE_WGMMA_D_64_95
#undef NIBBLE_WGMMA_NAMES_96_127
#undef NIBBLE_WGMMA_D_96_127
// clang-format on

}  // namespace nibble::kernels::cuda
