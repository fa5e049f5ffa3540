// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <numbers>

#include "base/check.h"
#include "kernels/rope/rope.h"

namespace nibble::kernels {
namespace {

// transformers computes frequencies and angles in float32, and at position 8000 half a unit in the
// last place of a frequency near 1 already turns the angle by 2e-4. The models were trained and are
// evaluated with those roundings, so each step below rounds to float as theirs does. What is left:
// torch's pow is not always correctly rounded (3 of 528 frequencies of ten common settings differ,
// by one unit in the last place).

float Llama3Frequency(float frequency, const RopeConfig& config) {
  const auto factor = static_cast<float>(config.factor);
  const auto original = static_cast<double>(config.original_max_position);
  const auto low_frequency_wavelength = static_cast<float>(original / config.low_freq_factor);
  const auto high_frequency_wavelength = static_cast<float>(original / config.high_freq_factor);
  // torch divides a number by a tensor as reciprocal times number.
  const float wavelength = 1.0F / frequency * static_cast<float>(2.0 * std::numbers::pi);
  if (wavelength < high_frequency_wavelength) return frequency;
  if (wavelength > low_frequency_wavelength) return frequency / factor;
  const float smooth = (1.0F / wavelength * static_cast<float>(original) -
                        static_cast<float>(config.low_freq_factor)) /
                       static_cast<float>(config.high_freq_factor - config.low_freq_factor);
  return (1.0F - smooth) * frequency / factor + smooth * frequency;
}

}  // namespace

std::vector<double> InverseFrequencies(const RopeConfig& config) {
  NIBBLE_CHECK_EQ(config.rotary_dim % 2, 0);
  std::vector<double> frequencies(static_cast<size_t>(config.rotary_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.rotary_dim);
    const auto base = static_cast<float>(config.theta);
    const auto power =
        static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
    float frequency = 1.0F / power;
    switch (config.scaling) {
      case RopeConfig::Scaling::kNone:
        break;
      case RopeConfig::Scaling::kLinear:
        frequency /= static_cast<float>(config.factor);
        break;
      case RopeConfig::Scaling::kLlama3:
        frequency = Llama3Frequency(frequency, config);
        break;
    }
    frequencies[i] = static_cast<double>(frequency);
  }
  return frequencies;
}

RopeTable MakeRopeTable(const RopeConfig& config, int64_t max_positions, ThreadPool* pool) {
  const std::vector<double> frequencies = InverseFrequencies(config);
  RopeTable table{.rotary_dim = config.rotary_dim, .max_positions = max_positions};
  table.cos.resize(static_cast<size_t>(max_positions) * frequencies.size());
  table.sin.resize(table.cos.size());
  constexpr int64_t kPositionsPerPiece = 256;
  pool->ParallelFor(max_positions, kPositionsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      size_t at = static_cast<size_t>(position) * frequencies.size();
      for (const double frequency : frequencies) {
        const float angle = static_cast<float>(position) * static_cast<float>(frequency);
        table.cos[at] = static_cast<float>(std::cos(static_cast<double>(angle)));
        table.sin[at] = static_cast<float>(std::sin(static_cast<double>(angle)));
        ++at;
      }
    }
  });
  return table;
}

}  // namespace nibble::kernels
