// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A group's scale and zero point, once for all instruction sets: what differs between those is how
// the least and the greatest value are found, not what becomes of them. Included by files compiled
// for one instruction set: everything here is static.
#pragma once

#include <cstdint>

namespace nibble::comm {

// Values beyond it are coded as it: the code above could decode to an infinity. With rotation,
// whose coefficients may be 11 times as large, beyond kLargestRotated.
static constexpr float kLargest = 0x1p127F;
static constexpr float kLargestRotated = 0x1p120F;
// The least scale: its reciprocal is finite and nothing of it is subnormal.
static constexpr float kSmallestScale = 0x1p-126F;
// Adding it to |x| < 2^22 rounds x to an integer, half to even, which the low bits then hold.
static constexpr float kRounder = 0x1.8p23F;
static constexpr uint16_t kNanBf16 = 0x7fc0;
static constexpr uint32_t kNanBits = 0x7fc00000U;

// Scales of the one-byte codes: 8 steps an octave from 2^-16 to 2^10; so that whatever float32
// holds has some scale, one step for 4 octaves above, where a scale that is too large loses values,
// and one for 8 below. Code 0 and those after the last are NaN.
struct Log2Scales {
  float of_code[256];
};
extern const Log2Scales kLog2Scales;
static constexpr int kNanLog2 = 0;

// What is constexpr here, device code calls too.

static constexpr uint32_t FloatBits(float value) { return __builtin_bit_cast(uint32_t, value); }
static constexpr float FloatOfBits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// The mantissa of 2^(j / 8), j = 0..7.
static constexpr uint32_t RootMantissa(int j) {
  constexpr uint32_t kRoots[8] = {0x0,      0xb95c2,  0x1837f0, 0x25fed7,
                                  0x3504f3, 0x45672a, 0x5744fd, 0x6ac0c7};
  return kRoots[j];
}
static constexpr float PowerOfTwo(int exponent) {
  return FloatOfBits(static_cast<uint32_t>(exponent + 127) << 23);
}

// kLog2Scales.of_code[code], computed.
static constexpr float Log2Scale(int code) {
  if (code >= 16 && code < 224) {
    const int eighths = code - 15;  // above 2^-16
    return FloatOfBits((static_cast<uint32_t>(eighths / 8 - 16 + 127) << 23) |
                       RootMantissa(eighths % 8));
  }
  if (code == 1) return kSmallestScale;
  if (code >= 2 && code < 16) return PowerOfTwo(-120 + 8 * (code - 2));
  if (code >= 224 && code < 253) return PowerOfTwo(14 + 4 * (code - 224));
  if (code == 253) return PowerOfTwo(127);
  return FloatOfBits(kNanBits);
}

// The code of the least scale >= `scale`, but for a part in 2^15: codes of codes find their scale
// again though the range was rounded on the way. REQUIRES scale >= kSmallestScale.
static constexpr int Log2Code(float scale) {
  const uint32_t bits = FloatBits(scale) - 0x100U;
  const int octave = static_cast<int>(bits >> 23) - 127;
  const uint32_t mantissa = bits & 0x7fffffU;
  int steps = 0;
  for (int j = 0; j < 8; ++j) steps += mantissa > RootMantissa(j) ? 1 : 0;
  const int eighths = octave * 8 + steps;
  if (eighths > -128 && eighths <= 80) return 15 + 128 + eighths;  // 16..223
  const int ceiling = octave + (steps > 0 ? 1 : 0);
  if (ceiling <= -126) return 1;
  if (ceiling <= -16) return 2 + (ceiling + 127) / 8;  // 2: 2^-120, 15: 2^-16
  if (ceiling > 126) return 253;                       // 2^127
  return 224 + (ceiling - 11) / 4;                     // 224: 2^14, 252: 2^126
}

struct GroupScale {
  float scale = 0.0F;
  float inverse = 0.0F;
  float zero = 0.0F;  // a whole number
  uint16_t code = 0;
};

// Of a group whose values lie in low..high, low <= 0 <= high, within kLargest.
static constexpr GroupScale ScaleOf(float low, float high, int bits, bool log2_scales) {
  const auto levels = static_cast<float>((1 << bits) - 1);
  const float share = 1.0F / levels;
  GroupScale group;
  // Two products, because high - low may be infinite.
  float exact = high * share - low * share;
  exact = exact > kSmallestScale ? exact : kSmallestScale;
  if (log2_scales) {
    group.code = static_cast<uint16_t>(Log2Code(exact));
    group.scale = Log2Scale(group.code);
  } else {
    // Up, but for a part in 2^15, as above.
    const uint32_t rounded = (FloatBits(exact) + 0xff00U) >> 16;
    group.code = static_cast<uint16_t>(rounded);
    group.scale = FloatOfBits(rounded << 16);
  }
  group.inverse = 1.0F / group.scale;
  const float zero = (kRounder - low * group.inverse) - kRounder;
  group.zero = zero < levels ? zero : levels;
  return group;
}

// Of what may come from a peer: NaN or finite, of any sign.
static constexpr float Bf16ScaleOfCode(uint16_t code) {
  const uint32_t bits = static_cast<uint32_t>(code) << 16;
  return FloatOfBits((bits & 0x7f800000U) == 0x7f800000U ? kNanBits : bits);
}
static constexpr float SpikeOfCode(uint16_t code) { return Bf16ScaleOfCode(code); }
static inline float ScaleOfCode(uint16_t code, bool log2_scales) {
  return log2_scales ? kLog2Scales.of_code[code & 0xff] : Bf16ScaleOfCode(code);
}

// Round to nearest even, of finite values; -0 is 0, as min and max of instruction sets may return
// either.
static constexpr uint16_t SpikeCode(float value) {
  const uint32_t bits = FloatBits(value + 0.0F);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

// 1 / sqrt(group_size) for 32, 64, 128.
static constexpr float RotationScale(int group_size) {
  return group_size == 32 ? 0x1.6a09e6p-3F : group_size == 64 ? 0.125F : 0x1.6a09e6p-4F;
}

}  // namespace nibble::comm
