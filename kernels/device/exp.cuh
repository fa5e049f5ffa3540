// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// exp with the bits of math_avx512.h and math_avx2.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::kernels::cuda {

// Within 1 unit in the last place: 0 below -104, +inf above 88.8, NaN stays NaN, Exp(0) is exactly
// 1.
__device__ __forceinline__ float Exp(float x) {
  if (x != x) return x;
  x = x > 90.0F ? 90.0F : x;
  x = x < -105.0F ? -105.0F : x;
  // x = n ln2 + r, |r| <= ln2 / 2.
  const float n = rintf(x * 0x1.715476p+0F);
  float r = fmaf(-n, 0x1.62e43p-1F, x);
  r = fmaf(-n, -0x1.05c61p-29F, r);
  float poly = 1.0F / 5040.0F;
  poly = fmaf(poly, r, 1.0F / 720.0F);
  poly = fmaf(poly, r, 1.0F / 120.0F);
  poly = fmaf(poly, r, 1.0F / 24.0F);
  poly = fmaf(poly, r, 1.0F / 6.0F);
  poly = fmaf(poly, r, 0.5F);
  poly = fmaf(poly, r, 1.0F);
  poly = fmaf(poly, r, 1.0F);
  // By 2^n in two steps, the first of them exact: n is beyond the exponents of float. One rounding,
  // as scalef has.
  const int exponent = static_cast<int>(n);
  const int half = exponent / 2;
  poly *= __int_as_float((half + 127) << 23);
  return poly * __int_as_float((exponent - half + 127) << 23);
}

}  // namespace nibble::kernels::cuda
