// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Round to nearest in every instruction set against the reference, to the bit.
#include "kernels/quant/rtn_kernels.h"

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "kernels/device/pick_by_isa.h"
#include "kernels/quant/rtn.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using testing::Random;

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<uint32_t> Bits(const float* values, int64_t count) {
  std::vector<uint32_t> bits;
  for (int64_t i = 0; i < count; ++i) bits.push_back(std::bit_cast<uint32_t>(values[i]));
  return bits;
}
std::vector<uint32_t> Bits(const std::vector<float>& values) {
  return Bits(values.data(), static_cast<int64_t>(values.size()));
}

class RtnKernelsTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this CPU (" << HostCpuFeatures().name << ") has no " << ToString(GetParam());
    }
  }
  template <typename Function>
  static Function* Pick(Function* ref, Function* avx2, Function* avx512vnni) {
    return PickByIsa(GetParam(), ref, avx2, avx512vnni);
  }
};

// `count` weights with NaN on both sides, not aligned.
struct Fenced {
  explicit Fenced(int64_t count) : all(static_cast<size_t>(count + 33), kNan) {}
  float* weights() { return all.data() + 1; }
  std::vector<float> all;
};

TEST_P(RtnKernelsTest, MaxAbsFindsTheLargestAndWhatIsNotFinite) {
  const auto max_abs = Pick(ref::RtnMaxAbs, avx2::RtnMaxAbs, avx512vnni::RtnMaxAbs);
  Random random(31);
  for (int64_t count = 1; count < 70; ++count) {
    Fenced fenced(count);
    for (int64_t i = 0; i < count; ++i) fenced.weights()[i] = random.Uniform(-1.0F, 1.0F);
    for (int64_t at = 0; at < count; ++at) {
      const float before = fenced.weights()[at];
      for (const float largest : {1.5F, -1e-40F, -3.0F, 1e38F, kInf, -kInf}) {
        fenced.weights()[at] = largest;
        const float found = max_abs(fenced.weights(), count);
        EXPECT_EQ(found, ref::RtnMaxAbs(fenced.weights(), count)) << count << " " << at;
        if (std::abs(largest) > 1.0F) {
          EXPECT_EQ(found, std::abs(largest));
        }
      }
      fenced.weights()[at] = std::copysign(kNan, before);
      EXPECT_TRUE(std::isnan(max_abs(fenced.weights(), count))) << count << " " << at;
      fenced.weights()[at] = before;
    }
  }
}

// Scales that clip much, at halves of a step, hardly and not at all, in all numbers of them.
TEST_P(RtnKernelsTest, MeasuresTheErrorsOfTheReference) {
  const auto measure = Pick(ref::RtnMeasure, avx2::RtnMeasure, avx512vnni::RtnMeasure);
  Random random(32);
  for (const int64_t count : {1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 31, 32, 33, 63, 128, 200, 1001}) {
    Fenced fenced(count);
    float* const weights = fenced.weights();
    for (int64_t i = 0; i < count; ++i) {
      // A quarter lie where rounding has to choose, some are 0.
      weights[i] = random.Int(0, 3) == 0 ? static_cast<float>(random.Int(-16, 16)) * 0.5F
                                         : random.Normal() * 2.0F;
    }
    weights[0] += weights[0] == 0.0F ? 1.0F : 0.0F;
    const float max_abs = ref::RtnMaxAbs(weights, count);
    for (int num_scales = 0; num_scales <= RtnTrial::kMaxScales; ++num_scales) {
      RtnTrial expected;
      expected.num_scales = num_scales;
      for (int i = 0; i < num_scales; ++i) {
        expected.scales[i] = max_abs / (random.Int(0, 2) == 0 ? 7.5F : random.Uniform(3.0F, 40.0F));
      }
      RtnTrial actual = expected;
      ref::RtnMeasure(weights, count, max_abs, &expected);
      measure(weights, count, max_abs, &actual);
      for (int sign = 0; sign < 2; ++sign) {
        EXPECT_EQ(Bits(actual.errors[sign], num_scales), Bits(expected.errors[sign], num_scales))
            << count << " weights, " << num_scales << " scales, sign " << sign;
      }
    }
  }
}

// Channels from far below to far above the groups' scales, so that the grid is left on both sides.
TEST_P(RtnKernelsTest, EstimatesTheErrorsOfTheReference) {
  const auto estimate = Pick(ref::RtnEstimate, avx2::RtnEstimate, avx512vnni::RtnEstimate);
  Random random(33);
  for (const int64_t num_groups : {0, 1, 2, 3, 33}) {
    std::vector<RtnGroup> groups(static_cast<size_t>(num_groups));
    for (RtnGroup& group : groups) {
      group = {};
      if (random.Int(0, 7) == 0) continue;  // zeros
      group.max_abs = random.Uniform(0.1F, 2.0F);
      for (int sign = 0; sign < 2; ++sign) {
        for (int i = 0; i < kRtnClips; ++i) group.errors[sign][i] = random.Uniform(0.1F, 1.0F);
        group.best_scale[sign] =
            group.max_abs / 7.0F * RtnClipFactor(static_cast<int>(random.Int(0, kRtnClips - 1)));
      }
      if (random.Int(0, 7) == 0) group.errors[0][4] = kInf;
    }
    for (const int num_channels : {16, 32, 64}) {
      std::vector<float> channels;
      for (int i = 0; i < num_channels; ++i) {
        channels.push_back(std::ldexp(random.Uniform(0.5F, 1.0F),
                                      static_cast<int>(random.Int(-14, i % 2 == 0 ? -5 : 1))));
      }
      std::vector<float> expected(channels.size() + 1, -5.0F);
      std::vector<float> actual = expected;
      ref::RtnEstimate(groups.data(), num_groups, channels.data(), num_channels, expected.data());
      estimate(groups.data(), num_groups, channels.data(), num_channels, actual.data());
      EXPECT_EQ(Bits(actual), Bits(expected)) << num_groups << " groups";
    }
  }
}

TEST_P(RtnKernelsTest, EncodesAsTheReferenceAndNotBeyondTheEnd) {
  const auto encode = Pick(ref::RtnEncode, avx2::RtnEncode, avx512vnni::RtnEncode);
  Random random(34);
  for (int64_t count = 1; count < 70; ++count) {
    Fenced fenced(count);
    for (int64_t i = 0; i < count; ++i) {
      fenced.weights()[i] = static_cast<float>(random.Int(-20, 20)) * 0.25F;
    }
    for (const float inverse : {2.0F, -2.0F, 0.0F, 1.7F, -1e6F}) {
      std::vector<uint8_t> expected(static_cast<size_t>(count + 32), 99);
      std::vector<uint8_t> actual = expected;
      ref::RtnEncode(fenced.weights(), count, inverse, expected.data());
      encode(fenced.weights(), count, inverse, actual.data());
      EXPECT_EQ(actual, expected) << count << " weights times " << inverse;
      EXPECT_EQ(expected[static_cast<size_t>(count)], 99);
    }
  }
}

enum class Kind { kNormal, kSparse, kOutliers, kOnGrid, kSizes, kTiny };

std::vector<float> Matrix(Kind kind, int64_t n, int64_t k, int64_t group_size) {
  Random random(static_cast<uint32_t>(k * 1000 + group_size * 10) + static_cast<uint32_t>(kind));
  std::vector<float> weights;
  for (int64_t row = 0; row < n; ++row) {
    const auto exponent = static_cast<int>(kind == Kind::kSizes  ? random.Int(-90, 45)
                                           : kind == Kind::kTiny ? random.Int(-148, -90)
                                                                 : -5);
    const float size = std::ldexp(1.0F, exponent);
    for (int64_t i = 0; i < k; ++i) {
      float w = random.Normal();
      const int64_t group = i / group_size;
      if (kind == Kind::kSparse && (group % 3 == 1 || random.Int(0, 2) != 0)) w = 0.0F;
      if (kind == Kind::kOutliers && random.Int(0, 40) == 0) w *= 20.0F;
      if (kind == Kind::kOnGrid) w = static_cast<float>(random.Int(-8, 7) * (1 + group % 16));
      if (kind == Kind::kSizes && group % 2 == 1) w *= 0.01F;
      weights.push_back(w * size);
    }
  }
  return weights;
}

TEST_P(RtnKernelsTest, MatricesGetTheCodesAndScalesOfTheReference) {
  ThreadPool pool(2);
  constexpr int64_t kN = 5;
  for (const Kind kind :
       {Kind::kNormal, Kind::kSparse, Kind::kOutliers, Kind::kOnGrid, Kind::kSizes, Kind::kTiny}) {
    for (const int64_t k : {1, 7, 16, 33, 128, 301}) {
      for (const int64_t group_size : {1, 8, 31, 32, 128, 500}) {
        const std::vector<float> weights = Matrix(kind, kN, k, group_size);
        for (const bool folded : {true, false}) {
          RtnOptions options = {.group_size = group_size, .folded_scales = folded};
          auto expected = QuantizeRtn(weights.data(), kN, k, options, &pool);
          options.isa = GetParam();
          auto actual = QuantizeRtn(weights.data(), kN, k, options, &pool);
          ASSERT_TRUE(expected.ok() && actual.ok()) << expected.status() << actual.status();
          EXPECT_EQ(actual->codes, expected->codes);
          EXPECT_EQ(Bits(actual->scales), Bits(expected->scales))
              << "kind " << static_cast<int>(kind) << ", k " << k << ", groups of " << group_size;
        }
      }
    }
  }
}

TEST_P(RtnKernelsTest, RefusesWhatIsNotFiniteAndNamesTheFirst) {
  ThreadPool pool(3);
  for (const float bad : {kNan, -kNan, kInf, -kInf, 1.1e15F, -1e18F}) {
    std::vector<float> weights(40 * 27, 1.0F);
    weights[35 * 27 + 2] = bad;
    weights[9 * 27 + 26] = bad;
    weights[9 * 27 + 25] = 1e15F;
    const absl::Status status =
        QuantizeRtn(weights.data(), 40, 27, {.group_size = 20, .isa = GetParam()}, &pool).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("[9, 26]"), absl::string_view::npos) << status;
  }
}

// Checkpoints of one release are those of the next: sums of other rounding would choose other
// scales now and then.
TEST_P(RtnKernelsTest, ResultsStayWhatTheyWere) {
  ThreadPool pool(2);
  const auto hash = [&](int64_t n, int64_t k, int64_t group_size, bool folded) {
    const std::vector<float> weights = Matrix(Kind::kNormal, n, k, group_size);
    const RtnOptions options = {
        .group_size = group_size, .folded_scales = folded, .isa = GetParam()};
    auto quantized = QuantizeRtn(weights.data(), n, k, options, &pool);
    EXPECT_TRUE(quantized.ok()) << quantized.status();
    uint64_t result = 14695981039346656037U;  // FNV-1a
    const auto add = [&](uint32_t value) { result = (result ^ value) * 1099511628211U; };
    for (const uint8_t code : quantized->codes) add(code);
    for (const float scale : quantized->scales) add(std::bit_cast<uint32_t>(scale));
    return result;
  };
  EXPECT_EQ(hash(48, 1024, 128, true), 8223477516863952680U);
  EXPECT_EQ(hash(48, 1024, 128, false), 17056085809066531348U);
  EXPECT_EQ(hash(33, 301, 40, true), 5677617273312337975U);
}

INSTANTIATE_TEST_SUITE_P(AllIsas, RtnKernelsTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni),
                         [](const auto& param) { return std::string(ToString(param.param)); });

}  // namespace
}  // namespace nibble::kernels
