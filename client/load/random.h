// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Random numbers that are the same for a seed everywhere: the standard library's distributions are
// each library's own.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace nibble::client {

class Random {
 public:
  // Independent for every `stream` of a seed.
  Random(uint64_t seed, uint64_t stream) : bits_(Mix(seed, stream)) {}

  // In [0, 1).
  double Uniform() { return static_cast<double>(bits_() >> 11) * 0x1.0p-53; }

  // In 0..bound-1, all as likely. REQUIRES bound > 0.
  uint64_t Below(uint64_t bound) {
    const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;  // a multiple of bound
    for (;;) {
      if (const uint64_t value = bits_(); value < limit) return value % bound;
    }
  }
  // In low..high.
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Below(static_cast<uint64_t>(high - low) + 1));
  }

  double Normal() {  // Marsaglia's polar method
    for (;;) {
      const double u = 2 * Uniform() - 1;
      const double v = 2 * Uniform() - 1;
      const double s = u * u + v * v;
      if (s > 0 && s < 1) return u * std::sqrt(-2 * std::log(s) / s);
    }
  }

  // Mean `shape`, scale 1. Marsaglia and Tsang, ACM TOMS 26 (2000); REQUIRES shape > 0.
  double Gamma(double shape) {
    if (shape < 1) return Gamma(shape + 1) * std::pow(1 - Uniform(), 1 / shape);
    const double d = shape - 1.0 / 3;
    const double c = 1 / std::sqrt(9 * d);
    for (;;) {
      const double x = Normal();
      const double root = 1 + c * x;
      if (root <= 0) continue;
      const double v = root * root * root;
      if (std::log(1 - Uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
    }
  }

  template <typename T>
  void Shuffle(std::vector<T>* values) {
    for (size_t i = values->size(); i > 1; --i) std::swap((*values)[i - 1], (*values)[Below(i)]);
  }

 private:
  static uint64_t Mix(uint64_t seed, uint64_t stream) {  // splitmix64
    uint64_t z = seed + 0x9e3779b97f4a7c15ULL * (stream + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }

  std::mt19937_64 bits_;  // whose numbers the standard prescribes
};

}  // namespace nibble::client
