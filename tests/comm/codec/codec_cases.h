// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Codecs and values that the tests of this folder share.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "comm/codec/codec.h"
#include "tests/testing/random.h"

namespace nibble::comm {

inline constexpr int kIntegerBits[] = {2, 3, 4, 5, 6, 8};

// Every codec that Validate lets through.
inline std::vector<CodecDesc> AllCodecs() {
  std::vector<CodecDesc> codecs;
  for (const int group_size : {32, 64, 128}) {
    for (const int bits : kIntegerBits) {
      for (const ScaleFormat scale : {ScaleFormat::kBf16, ScaleFormat::kLog2Int8}) {
        for (const bool spikes : {false, true}) {
          for (const bool rotation : {false, true}) {
            codecs.push_back({bits, group_size, scale, spikes, rotation});
          }
        }
      }
    }
    codecs.push_back({.bits = 16, .group_size = group_size});
    codecs.push_back({.bits = 32, .group_size = group_size});
  }
  return codecs;
}

// Values of every kind, changing from stretch to stretch: with `faults` NaN and infinities too.
inline std::vector<float> HardValues(testing::Random* random, int64_t count, bool faults) {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  std::vector<float> values(static_cast<size_t>(count));
  size_t i = 0;
  while (i < values.size()) {
    const size_t end =
        std::min(values.size(), i + static_cast<size_t>(random->Int(1, 2) * random->Int(1, 160)));
    const int64_t kind = random->Int(0, faults ? 14 : 12);
    const float level = std::exp2(random->Uniform(-20.0F, 20.0F));
    for (; i < end; ++i) {
      const float normal = random->Normal();
      float x = normal * level;
      if (kind == 4) x = std::abs(x) + level;  // none near zero
      if (kind == 5) x = -std::abs(x);
      if (kind == 6) x = random->Int(0, 1) != 0 ? 0.0F : -0.0F;
      if (kind == 7) x = level;                   // all the same
      if (kind == 8) x = normal * kTiny * 40.0F;  // subnormal
      if (kind == 9) x = normal * 0x1p-126F;      // about the least normal
      if (kind == 10) x = normal * 4e37F;
      if (kind == 11) x = random->Int(0, 1) != 0 ? kMax : -kMax;
      if (kind == 12 && random->Int(0, 30) == 0) x *= 1e6F;  // outliers
      if (kind == 13 && random->Int(0, 60) == 0) x = NAN;
      if (kind == 14 && random->Int(0, 60) == 0) x = random->Int(0, 1) != 0 ? INFINITY : -INFINITY;
      values[i] = x;
    }
  }
  return values;
}

// 10 log10 of the power of `x` over that of its error.
inline double SqnrDb(const std::vector<float>& x, const std::vector<float>& decoded) {
  double signal = 0.0;
  double noise = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    signal += std::pow(static_cast<double>(x[i]), 2.0);
    noise += std::pow(static_cast<double>(x[i]) - static_cast<double>(decoded[i]), 2.0);
  }
  return 10.0 * std::log10(signal / noise);
}

}  // namespace nibble::comm
