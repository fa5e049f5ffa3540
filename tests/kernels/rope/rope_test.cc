// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/rope/rope.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::Random;

std::vector<double> ReadNumbers(std::istringstream& line) {
  std::vector<double> numbers;
  for (double number = 0.0; line >> number;) numbers.push_back(number);
  return numbers;
}

RopeConfig ReadConfig(std::istringstream& line) {
  RopeConfig config;
  std::string kind;
  line >> kind >> config.rotary_dim >> config.theta >> config.factor >> config.low_freq_factor >>
      config.high_freq_factor >> config.original_max_position;
  if (kind == "linear") config.scaling = RopeConfig::Scaling::kLinear;
  if (kind == "llama3") config.scaling = RopeConfig::Scaling::kLlama3;
  return config;
}

// tests/fixtures/rope/generate.py
TEST(RopeTableTest, AgreesWithTransformers) {
  std::ifstream file(NIBBLE_SOURCE_DIR "/tests/fixtures/rope/transformers.txt");
  ASSERT_TRUE(file.good());
  ThreadPool pool(2);
  RopeTable table;
  std::vector<double> frequencies;
  std::string current;  // the case's own line
  int num_lines = 0;
  int num_unequal = 0;
  for (std::string text; std::getline(file, text); ++num_lines) {
    std::istringstream line(text);
    std::string what;
    line >> what;
    if (what == "case") {
      const RopeConfig config = ReadConfig(line);
      frequencies = InverseFrequencies(config);
      table = MakeRopeTable(config, 8192, &pool);
      current = text;
      continue;
    }
    SCOPED_TRACE(current);
    size_t position = 0;
    if (what != "frequencies") line >> position;
    const std::vector<double> expected = ReadNumbers(line);
    ASSERT_EQ(expected.size(), frequencies.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      if (what == "frequencies") {
        // The same float, but for the few that torch's pow does not round correctly.
        const auto expected_float = static_cast<float>(expected[i]);
        EXPECT_NEAR(frequencies[i], expected[i], 1.2e-7 * expected[i]) << i;
        num_unequal += static_cast<float>(frequencies[i]) != expected_float ? 1 : 0;
        continue;
      }
      const std::vector<float>& values = what == "cos" ? table.cos : table.sin;
      const auto actual = static_cast<double>(values[position * expected.size() + i]);
      // One unit in the last place of the frequency turns the angle by as much times the position.
      const double angle = static_cast<double>(position) * frequencies[i];
      EXPECT_NEAR(actual, expected[i], 1e-7 + 1.3e-7 * angle)
          << what << " " << position << " " << i;
    }
  }
  EXPECT_EQ(num_lines, 7 * 10);
  EXPECT_LE(num_unequal, 1);
}

class RopeTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this machine has no " << ToString(GetParam());
    }
  }
  ThreadPool pool_{2};
};

TEST_P(RopeTest, RotatesPairsToTheBit) {
  Random random(1);
  for (const int64_t rotary_dim : {2, 6, 16, 18, 32, 34, 64, 80, 128}) {
    for (const int64_t rest : {0, 5}) {
      const RopeTable table = MakeRopeTable({.rotary_dim = rotary_dim}, 500, &pool_);
      const int64_t head_dim = rotary_dim + rest;
      const int64_t num_heads = 3;
      const int64_t stride = num_heads * head_dim + 4;
      const std::vector<int32_t> positions = {0, 1, 7, 499, 250, 7};
      const auto num_tokens = static_cast<int64_t>(positions.size());
      std::vector<float> x = random.Normals(num_tokens * stride);
      std::vector<float> expected = x;
      for (int64_t token = 0; token < num_tokens; ++token) {
        for (int64_t i = 0; i < num_heads * (rotary_dim / 2); ++i) {
          const int64_t half = rotary_dim / 2;
          float* pair = expected.data() + token * stride + i / half * head_dim + i % half;
          const auto angle =
              static_cast<size_t>(positions[static_cast<size_t>(token)] * half + i % half);
          const float a = pair[0] * table.cos[angle] - pair[half] * table.sin[angle];
          const float b = pair[half] * table.cos[angle] + pair[0] * table.sin[angle];
          pair[0] = a;
          pair[half] = b;
        }
      }
      ApplyRope(table,
                {.num_tokens = num_tokens,
                 .positions = positions.data(),
                 .x = x.data(),
                 .x_stride = stride,
                 .num_heads = num_heads,
                 .head_dim = head_dim},
                GetParam(), &pool_);
      EXPECT_TRUE(AllEqual<float>({x.data(), num_tokens, stride, stride},
                                  {expected.data(), num_tokens, stride, stride}))
          << "rotary_dim " << rotary_dim;
    }
  }
}

TEST_P(RopeTest, KnownAngle) {
  // Two components, frequency 1: position 2 turns by 2 radians.
  const RopeTable table = MakeRopeTable({.rotary_dim = 2}, 3, &pool_);
  const int32_t position = 2;
  std::vector<float> x = {1.0F, 0.0F};
  ApplyRope(table,
            {.num_tokens = 1,
             .positions = &position,
             .x = x.data(),
             .x_stride = 2,
             .num_heads = 1,
             .head_dim = 2},
            GetParam(), &pool_);
  EXPECT_NEAR(x[0], std::cos(2.0), 1e-7);
  EXPECT_NEAR(x[1], std::sin(2.0), 1e-7);
}

INSTANTIATE_TEST_SUITE_P(Variants, RopeTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx),
                         [](const auto& variant) { return std::string(ToString(variant.param)); });

}  // namespace
}  // namespace nibble::kernels
