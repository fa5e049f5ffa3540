// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/codec/codec_scale.h"

namespace nibble::comm {
namespace {

constexpr float PowerOfTwo(int exponent) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(exponent + 127) << 23);
}

constexpr Log2Scales MakeTable() {
  constexpr float kRoots[8] = {1.0F,           0x1.172b84p+0F, 0x1.306fe0p+0F, 0x1.4bfdaep+0F,
                               0x1.6a09e6p+0F, 0x1.8ace54p+0F, 0x1.ae89fap+0F, 0x1.d5818ep+0F};
  Log2Scales table{};
  for (float& scale : table.of_code) scale = __builtin_bit_cast(float, kNanBits);
  table.of_code[1] = kSmallestScale;
  for (int i = 0; i < 14; ++i) table.of_code[2 + i] = PowerOfTwo(-120 + 8 * i);
  for (int eighths = -127; eighths <= 80; ++eighths) {
    const int octave = (eighths + 128) / 8 - 16;
    table.of_code[15 + 128 + eighths] = PowerOfTwo(octave) * kRoots[(eighths + 128) % 8];
  }
  for (int i = 0; i < 29; ++i) table.of_code[224 + i] = PowerOfTwo(14 + 4 * i);
  table.of_code[253] = PowerOfTwo(127);
  return table;
}

}  // namespace

constexpr Log2Scales kLog2Scales = MakeTable();

}  // namespace nibble::comm
