// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// exp for weights relative to the largest one.
#pragma once

#include <bit>
#include <cstdint>

namespace nibble::kernels {

// exp(x) for x <= 0 within 2 units in the last place; 0 below -87 (where float becomes subnormal)
// and for NaN. Straight-line code, so that loops over it are vectorized; the same bits either way,
// and in device code.
constexpr float ExpNonPositive(float x) {
  constexpr float kLowest = -87.0F;
  constexpr float kRoundToInteger = 0x1.8p23F;
  const float clamped = x > kLowest ? x : kLowest;
  // x = n ln2 + r, |r| <= ln2 / 2. ln2 in two parts, the first short enough for n * kLn2High to be
  // exact.
  constexpr float kLog2E = 0x1.715476p+0F;
  constexpr float kLn2High = 0x1.63p-1F;
  constexpr float kLn2Low = -0x1.bd0106p-13F;
  const float shifted = clamped * kLog2E + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  // Taylor to the 7th power: the remainder at ln2 / 2 is 5e-9, a tenth of float's rounding.
  float poly = 1.0F / 5040.0F;
  poly = poly * r + 1.0F / 720.0F;
  poly = poly * r + 1.0F / 120.0F;
  poly = poly * r + 1.0F / 24.0F;
  poly = poly * r + 1.0F / 6.0F;
  poly = poly * r + 0.5F;
  poly = poly * r + 1.0F;
  poly = poly * r + 1.0F;
  // The low bits of `shifted` hold n: add it to the exponent (poly is in 0.7..1.5, n >= -126).
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) << 23;
  const float value = std::bit_cast<float>(std::bit_cast<uint32_t>(poly) + exponent);
  return x >= kLowest ? value : 0.0F;
}

}  // namespace nibble::kernels
