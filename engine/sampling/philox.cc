// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/sampling/philox.h"

#include "engine/sampling/sampler.h"

namespace nibble::engine {
namespace {

constexpr int kRounds = 10;
// Multipliers and key increments of the paper (the latter from the golden ratio and sqrt(3) - 1).
constexpr uint64_t kMultiplier0 = 0xD2511F53U;
constexpr uint64_t kMultiplier1 = 0xCD9E8D57U;
constexpr uint32_t kWeyl0 = 0x9E3779B9U;
constexpr uint32_t kWeyl1 = 0xBB67AE85U;

constexpr uint32_t High(uint64_t value) { return static_cast<uint32_t>(value >> 32); }
constexpr uint32_t Low(uint64_t value) { return static_cast<uint32_t>(value); }

}  // namespace

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultiplier0 * counter[0];
    const uint64_t product1 = kMultiplier1 * counter[2];
    counter = {High(product1) ^ counter[1] ^ key[0], Low(product1),
               High(product0) ^ counter[3] ^ key[1], Low(product0)};
    key = {key[0] + kWeyl0, key[1] + kWeyl1};
  }
  return counter;
}

float UniformFromCounter(uint64_t seed, uint64_t index) {
  const std::array<uint32_t, 4> bits =
      Philox4x32({Low(index), High(index), 0, 0}, {Low(seed), High(seed)});
  // 23 bits and a half: the largest value, 1 - 2^-24, is still a float below 1.
  return (static_cast<float>(bits[0] >> 9) + 0.5F) * 0x1p-23F;
}

}  // namespace nibble::engine
