// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Seeded inputs for tests: the same numbers on every machine (std::mt19937 is specified,
// distributions are not).
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace nibble::testing {

class Random {
 public:
  explicit Random(uint32_t seed) : bits_(seed) {}

  uint32_t Bits() { return bits_(); }
  int64_t Int(int64_t low, int64_t high) {  // inclusive
    return low + static_cast<int64_t>(bits_() % static_cast<uint64_t>(high - low + 1));
  }
  float Uniform(float low, float high) {
    return low + (high - low) * (static_cast<float>(bits_() >> 8) * 0x1p-24F);
  }
  // Sum of uniforms: near enough to a normal distribution of deviation 1.
  float Normal() {
    float sum = 0.0F;
    for (int i = 0; i < 12; ++i) sum += Uniform(-0.5F, 0.5F);
    return sum;
  }
  std::vector<float> Normals(int64_t count, float deviation = 1.0F) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = Normal() * deviation;
    return values;
  }

 private:
  std::mt19937 bits_;
};

}  // namespace nibble::testing
