// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/rtn.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

#include "base/float16.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using testing::Random;

// Heavier tails than a normal distribution and channels and groups of different size, as weights
// are.
std::vector<float> WeightLike(int64_t n, int64_t k) {
  Random random(11);
  std::vector<float> weights;
  for (int64_t row = 0; row < n; ++row) {
    const float channel = random.Uniform(0.01F, 0.05F);
    float group = 1.0F;
    for (int64_t i = 0; i < k; ++i) {
      if (i % 128 == 0) group = random.Uniform(0.5F, 1.5F);
      const float outlier = random.Int(0, 99) == 0 ? 2.5F : 1.0F;
      weights.push_back(random.Normal() * channel * group * outlier);
    }
  }
  return weights;
}

double SignalToNoise(const std::vector<float>& weights, const Int4Weight& quantized) {
  double signal = 0.0;
  double noise = 0.0;
  for (int64_t row = 0; row < quantized.n; ++row) {
    for (int64_t k = 0; k < quantized.k; ++k) {
      const auto w = static_cast<double>(weights[static_cast<size_t>(row * quantized.k + k)]);
      const double error = w - static_cast<double>(quantized.Dequantize(row, k));
      signal += w * w;
      noise += error * error;
    }
  }
  return 10.0 * std::log10(signal / noise);
}

TEST(QuantizeRtn, FoldingCostsLittleAndBeatsPlainRounding) {
  ThreadPool pool(2);
  constexpr int64_t kN = 32;
  constexpr int64_t kK = 1024;
  const std::vector<float> weights = WeightLike(kN, kK);
  auto folded = QuantizeRtn(weights.data(), kN, kK, {}, &pool);
  auto free = QuantizeRtn(weights.data(), kN, kK, {.folded_scales = false}, &pool);
  ASSERT_TRUE(folded.ok() && free.ok());
  const double folded_db = SignalToNoise(weights, *folded);
  const double free_db = SignalToNoise(weights, *free);
  RecordProperty("folded_db", std::to_string(folded_db));
  RecordProperty("free_db", std::to_string(free_db));
  // What scale = max / 7 gives.
  Int4Weight plain = *free;
  for (int64_t row = 0; row < kN; ++row) {
    for (int64_t g = 0; g < plain.num_groups(); ++g) {
      float max = 0.0F;
      for (int64_t k = g * 128; k < g * 128 + 128; ++k) {
        max = std::max(max, std::abs(weights[static_cast<size_t>(row * kK + k)]));
      }
      plain.scales[static_cast<size_t>(row * plain.num_groups() + g)] = max / 7.0F;
      for (int64_t k = g * 128; k < g * 128 + 128; ++k) {
        const auto code = static_cast<uint8_t>(
            std::nearbyint(weights[static_cast<size_t>(row * kK + k)] / (max / 7.0F)) + 8.0F);
        uint8_t& byte = plain.codes[static_cast<size_t>(row * plain.row_bytes() + k / 2)];
        byte = static_cast<uint8_t>(k % 2 == 0 ? (byte & 0xf0) | code : (byte & 0x0f) | code << 4);
      }
    }
  }
  const double plain_db = SignalToNoise(weights, plain);
  EXPECT_GT(free_db, plain_db + 0.3) << "searching the scale";
  EXPECT_GT(folded_db, free_db - 0.1) << "folding the scale";
}

// Levels are -8..7 times the scale: a group whose extreme is positive takes a negative scale and
// then represents both ends exactly.
TEST(QuantizeRtn, EachGroupChoosesTheSignOfItsScale) {
  ThreadPool pool(1);
  for (const bool folded : {true, false}) {
    std::vector<float> weights;
    for (const float direction : {1.0F, -1.0F, -1.0F, 1.0F}) {
      for (int64_t i = 0; i < 128; ++i) {
        weights.push_back(direction * static_cast<float>(i % 16 - 8) * 0.25F);
      }
    }
    auto quantized = QuantizeRtn(weights.data(), 1, 512, {.folded_scales = folded}, &pool);
    ASSERT_TRUE(quantized.ok()) << quantized.status();
    EXPECT_TRUE(FindFoldedScales(*quantized, folded ? 0.0F : 0.1F).ok());
    EXPECT_GT(quantized->scales[0], 0.0F);
    EXPECT_LT(quantized->scales[1], 0.0F);
    EXPECT_LT(quantized->scales[2], 0.0F);
    EXPECT_GT(quantized->scales[3], 0.0F);
    EXPECT_GT(SignalToNoise(weights, *quantized), 30.0);
  }
}

TEST(QuantizeRtn, FoldedScalesFoldExactlyEvenInHalfPrecision) {
  ThreadPool pool(2);
  const std::vector<float> weights = WeightLike(20, 700);
  auto quantized = QuantizeRtn(weights.data(), 20, 700, {}, &pool);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_TRUE(FindFoldedScales(*quantized, 0.0F).ok()) << FindFoldedScales(*quantized).status();
  for (const float scale : quantized->scales) EXPECT_EQ(ToFloat(ToFloat16(scale)), scale);
}

TEST(QuantizeRtn, DoesNotDependOnThreads) {
  const std::vector<float> weights = WeightLike(33, 300);
  ThreadPool one(1);
  ThreadPool three(3);
  for (const bool folded : {false, true}) {
    auto a =
        QuantizeRtn(weights.data(), 33, 300, {.group_size = 64, .folded_scales = folded}, &one);
    auto b =
        QuantizeRtn(weights.data(), 33, 300, {.group_size = 64, .folded_scales = folded}, &three);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->codes, b->codes);
    EXPECT_EQ(a->scales, b->scales);
  }
}

// Weights that lie on a grid of S * c come back exactly: the search has to find that grid.
TEST(QuantizeRtn, RecoversWeightsThatAreAlreadyQuantized) {
  ThreadPool pool(1);
  Random random(12);
  std::vector<float> weights;
  for (int64_t i = 0; i < 4 * 512; ++i) {
    const int64_t group = i / 128 % 4;
    const auto integer = static_cast<float>(group == 0 ? 16 : 7 + group);
    const int64_t in_group = i % 128;
    // Each group uses its whole range of codes.
    const auto code = static_cast<float>(in_group < 16 ? in_group - 8 : random.Int(-8, 7));
    weights.push_back(code * integer * 0.0009765625F);
  }
  auto quantized = QuantizeRtn(weights.data(), 4, 512, {}, &pool);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_GT(SignalToNoise(weights, *quantized), 21.0);
}

TEST(QuantizeRtn, ZerosAndTinyChannels) {
  ThreadPool pool(1);
  std::vector<float> weights(3 * 256, 0.0F);
  weights[256] = 1e-38F;       // a channel too small to scale
  weights[512 + 130] = -4.0F;  // a channel with one group of zeros
  auto quantized = QuantizeRtn(weights.data(), 3, 256, {}, &pool);
  ASSERT_TRUE(quantized.ok()) << quantized.status();
  EXPECT_TRUE(quantized->Validate().ok());
  EXPECT_TRUE(FindFoldedScales(*quantized).ok()) << FindFoldedScales(*quantized).status();
  EXPECT_EQ(quantized->Dequantize(0, 0), 0.0F);
  EXPECT_EQ(quantized->Dequantize(1, 0), 0.0F);
  EXPECT_EQ(quantized->Dequantize(2, 0), 0.0F);
  EXPECT_NEAR(quantized->Dequantize(2, 130), -4.0F, 0.05F);
}

TEST(QuantizeRtn, RefusesWhatIsNotFiniteAndNamesTheFirst) {
  ThreadPool pool(3);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -1e18F}) {
    std::vector<float> weights(40 * 16, 1.0F);
    weights[35 * 16 + 2] = bad;
    weights[9 * 16 + 15] = bad;
    const absl::Status status = QuantizeRtn(weights.data(), 40, 16, {}, &pool).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("[9, 15]"), absl::string_view::npos) << status;
  }
  const float one = 1.0F;
  EXPECT_FALSE(QuantizeRtn(&one, 1, 1, {.group_size = 0}, &pool).ok());
  EXPECT_FALSE(QuantizeRtn(&one, 1, 0, {}, &pool).ok());
  EXPECT_TRUE(QuantizeRtn(&one, 1, 1, {}, &pool).ok());
}

}  // namespace
}  // namespace nibble::kernels
