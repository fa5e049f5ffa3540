// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// c -= a * b in double, the one loop in which GPTQ and its factorization spend their time.
//
// Every element is computed alike on every instruction set: products subtracted one by one in the
// order of `depth`, each rounded (no fused multiply-add, no partial sums). So what a quantizer
// writes depends neither on the CPU nor on how the work was cut into pieces. Plain data only:
// included by sources that are compiled for a higher instruction set than the rest of the program.
#pragma once

#include <cstdint>

namespace nibble::quantize {

// c [m, n] with row stride ldc, a [m, depth] with lda, b [depth, n] with ldb; all row-major. c
// overlaps neither a nor b.
struct SubtractProductArgs {
  int64_t m = 0;
  int64_t n = 0;
  int64_t depth = 0;
  const double* a = nullptr;
  int64_t lda = 0;
  const double* b = nullptr;
  int64_t ldb = 0;
  double* c = nullptr;
  int64_t ldc = 0;
};

using SubtractProductFunction = void (*)(const SubtractProductArgs& args);

namespace ref {
void SubtractProduct(const SubtractProductArgs& args);
}
namespace avx2 {
void SubtractProduct(const SubtractProductArgs& args);
}
namespace avx512vnni {
void SubtractProduct(const SubtractProductArgs& args);
}

}  // namespace nibble::quantize
