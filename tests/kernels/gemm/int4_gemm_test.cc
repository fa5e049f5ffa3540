// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>

#include "kernels/gemm/gemm.h"
#include "tests/kernels/gemm/gemm_test_case.h"

namespace nibble::kernels {
namespace {

using testing::Random;

struct Shape {
  int64_t m, n, k, group;
};
// Panels are 16 and 32 wide, row tiles up to 3 and 12 of equal heights, folding starts at 48 rows
// of a block (rows are split where there are few panels), blocks end at 96, and long rows come in
// chunks of some tiles (13 of 3, 4 of 12 at k = 20000): below, at and above each; groups that are
// no multiple of 8, cover k or exceed what is folded at once.
constexpr Shape kShapes[] = {
    {0, 5, 128, 128},    {1, 1, 1, 1},         {1, 32, 128, 128},   {1, 33, 257, 128},
    {2, 31, 96, 32},     {3, 17, 100, 128},    {4, 48, 130, 64},    {5, 16, 72, 24},
    {6, 40, 56, 7},      {7, 65, 256, 128},    {8, 33, 384, 128},   {9, 32, 136, 64},
    {10, 31, 264, 128},  {11, 34, 40, 8},      {12, 32, 1024, 128}, {13, 33, 1160, 128},
    {14, 70, 2080, 32},  {25, 20, 300, 128},   {31, 15, 33, 33},    {27, 64, 2500, 2500},
    {47, 33, 640, 128},  {48, 130, 648, 128},  {1, 20, 2500, 2500}, {49, 130, 2500, 2500},
    {13, 9, 4100, 2048}, {60, 20, 20000, 128}, {97, 20, 200, 32},   {193, 34, 136, 128},
    {200, 35, 77, 10},
};

struct Case {
  Int4Weight weight;
  Int8Activations x;
};

enum class Scales { kFolded, kFoldedSigned, kPositive, kSigned, kSignedWithZeroPoints };

Int4Weight MakeWeight(Random* random, int64_t n, int64_t k, int64_t group, Scales scales) {
  Int4Weight weight;
  weight.n = n;
  weight.k = k;
  weight.group_size = group;
  weight.codes.resize(static_cast<size_t>(n * weight.row_bytes()));
  for (uint8_t& byte : weight.codes) byte = static_cast<uint8_t>(random->Bits());
  for (int64_t row = 0; row < n; ++row) {
    const float channel = random->Uniform(0.001F, 0.01F);
    for (int64_t g = 0; g < weight.num_groups(); ++g) {
      float scale = 0.0F;
      if (scales == Scales::kFolded) {
        scale = channel * static_cast<float>(random->Int(1, 16));
      } else if (scales == Scales::kFoldedSigned) {
        const int64_t s = random->Int(-15, 15);
        scale = channel * static_cast<float>(s >= 0 ? s + 1 : s);
      } else {
        scale = channel * random->Uniform(1.0F, 16.0F);
      }
      if (scales == Scales::kSigned || scales == Scales::kSignedWithZeroPoints) {
        // Channels of one sign, of the other, and of both.
        if (row % 3 == 1 || (row % 3 == 2 && random->Int(0, 1) == 1)) scale = -scale;
      }
      weight.scales.push_back(scale);
      if (scales == Scales::kSignedWithZeroPoints) {
        weight.zero_points.push_back(static_cast<uint8_t>(random->Int(0, 15)));
      }
    }
  }
  return weight;
}

Case MakeCase(Random* random, const Shape& s, Scales scales) {
  Case c;
  c.weight = MakeWeight(random, s.n, s.k, s.group, scales);
  c.x = RandomActivations(random, s.m, s.n, s.k);
  return c;
}

class Int4GemmTest : public ::testing::TestWithParam<Isa> {};

TEST_P(Int4GemmTest, IntegerFormsEqualTheReferenceBitForBit) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(3);
  for (const Shape& s : kShapes) {
    for (const Scales scales : {Scales::kFolded, Scales::kFoldedSigned, Scales::kPositive,
                                Scales::kSigned, Scales::kSignedWithZeroPoints}) {
      SCOPED_TRACE(fmt::format("m={} n={} k={} group={} scales={}", s.m, s.n, s.k, s.group,
                               static_cast<int>(scales)));
      Case c = MakeCase(&random, s, scales);
      const bool folded = scales == Scales::kFolded || scales == Scales::kFoldedSigned;
      const ScaleForm form = folded ? ScaleForm::kFolded : ScaleForm::kInteger;
      auto reference = PackInt4(c.weight, form, Isa::kRef, &pool);
      ASSERT_TRUE(reference.ok()) << reference.status();
      auto weight = PackInt4(c.weight, form, GetParam(), &pool);
      ASSERT_TRUE(weight.ok()) << weight.status();
      const Output expected = RunInt8(**reference, &c.x, 0, s.m, &pool);
      EXPECT_TRUE(SameBits(RunInt8(**weight, &c.x, 0, s.m, &pool), s.m, s.n, expected));
    }
  }
}

TEST_P(Int4GemmTest, FloatFormIsNearTheReference) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(4);
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(fmt::format("m={} n={} k={} group={}", s.m, s.n, s.k, s.group));
    Case c = MakeCase(&random, s, Scales::kSignedWithZeroPoints);
    auto weight = PackInt4(c.weight, ScaleForm::kFloat, GetParam(), &pool);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const Output d = RunInt8(**weight, &c.x, 0, s.m, &pool);
    for (int64_t m = 0; m < s.m; ++m) {
      for (int64_t n = 0; n < s.n; ++n) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (int64_t k = 0; k < s.k; ++k) {
          const double product = c.x.at(m, k) * static_cast<double>(c.weight.Dequantize(n, k));
          sum += product;
          magnitude += std::abs(product);
        }
        const auto scale = static_cast<double>(c.x.scales[static_cast<size_t>(m)]);
        const auto bias = static_cast<double>(c.x.bias[static_cast<size_t>(n)]);
        // Group sums are exact; at most k fused additions, the scale and the bias round, each by
        // half a unit of a value below the sum of magnitudes. Dequantize rounds once per weight.
        const double roundings = static_cast<double>(std::min(s.k, s.k / s.group + 5) + 3);
        const double bound = 1.01 * 0x1p-24 * roundings * (magnitude * scale + std::abs(bias));
        ASSERT_NEAR(static_cast<double>(d.at(m, n)), sum * scale + bias, bound) << m << ", " << n;
      }
    }
  }
}

TEST_P(Int4GemmTest, RowsDoNotDependOnTheBatch) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(5);
  const Shape s = {211, 50, 640, 128};
  for (const ScaleForm form : {ScaleForm::kFolded, ScaleForm::kInteger, ScaleForm::kFloat}) {
    Case c =
        MakeCase(&random, s, form == ScaleForm::kFolded ? Scales::kFoldedSigned : Scales::kSigned);
    auto weight = PackInt4(c.weight, form, GetParam(), &pool);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const Output all = RunInt8(**weight, &c.x, 0, s.m, &pool);
    for (const auto& [first, m] : {std::pair<int64_t, int64_t>{0, 1},
                                   {7, 1},
                                   {9, 5},
                                   {2, 12},
                                   {60, 32},
                                   {209, 2},
                                   {100, 70}}) {
      EXPECT_TRUE(SameBits(RunInt8(**weight, &c.x, first, m, &pool), m, s.n, all, first))
          << "rows " << first << " to " << first + m;
    }
  }
}

// All products at their extremes: the sums come as near to 2^31 as the proof lets them, with both
// signs, so that a kernel that saturates or widens too late would show.
TEST_P(Int4GemmTest, ExtremeSumsAreExact) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  for (const int64_t k : {1024, 131072}) {
    for (const int code : {0, 15}) {
      for (const int activation : {-127, 127}) {
        for (const ScaleForm form : {ScaleForm::kFolded, ScaleForm::kInteger}) {
          for (const int64_t m : {1, 2, 3, 6, 14, 200}) {
            if (m == 200 && k > 1024) continue;  // folding, in little time
            SCOPED_TRACE(fmt::format("k={} code={} a={} m={}", k, code, activation, m));
            Case c;
            c.weight.n = 3;
            c.weight.k = k;
            c.weight.group_size = 128;
            c.weight.codes.assign(static_cast<size_t>(3 * k / 2), static_cast<uint8_t>(code * 17));
            c.weight.scales.assign(static_cast<size_t>(3 * k / 128), 16.0F);
            // Channel 0 has S = 16 but for its first group, channel 1 S = -15, channel 2 half each.
            const auto groups = static_cast<size_t>(k / 128);
            std::fill_n(c.weight.scales.begin() + groups, groups, -15.0F);
            std::fill_n(c.weight.scales.begin() + 2 * groups, groups / 2, -15.0F);
            for (size_t n : {0, 1, 2}) c.weight.scales[n * groups] = 1.0F;
            c.x = ConstantActivations(m, 3, k, activation);
            auto reference = PackInt4(c.weight, form, Isa::kRef, &pool);
            auto weight = PackInt4(c.weight, form, GetParam(), &pool);
            ASSERT_TRUE(weight.ok() && reference.ok()) << weight.status();
            EXPECT_TRUE(SameBits(RunInt8(**weight, &c.x, 0, m, &pool), m, 3,
                                 RunInt8(**reference, &c.x, 0, m, &pool)));
          }
        }
      }
    }
  }
}

// A row that QuantizeRows found not finite has a NaN scale: every output of it is NaN.
TEST_P(Int4GemmTest, NanScaleShows) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(1);
  Random random(6);
  for (const ScaleForm form : {ScaleForm::kFolded, ScaleForm::kInteger, ScaleForm::kFloat}) {
    Case c = MakeCase(&random, {2, 20, 128, 64}, Scales::kFolded);
    c.x.scales[1] = std::nanf("");
    auto weight = PackInt4(c.weight, form, GetParam(), &pool);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const Output d = RunInt8(**weight, &c.x, 0, 2, &pool);
    for (int64_t n = 0; n < 20; ++n) {
      EXPECT_FALSE(std::isnan(d.at(0, n)));
      EXPECT_TRUE(std::isnan(d.at(1, n)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas, Int4GemmTest, ::testing::ValuesIn(kAllIsas), IsaName);

TEST(Int4Gemm, ReferenceIsTheDequantizedProduct) {
  ThreadPool pool(1);
  Random random(7);
  const Shape s = {3, 9, 200, 64};
  for (const Scales scales :
       {Scales::kFolded, Scales::kFoldedSigned, Scales::kSigned, Scales::kSignedWithZeroPoints}) {
    Case c = MakeCase(&random, s, scales);
    const bool folded = scales == Scales::kFolded || scales == Scales::kFoldedSigned;
    auto weight =
        PackInt4(c.weight, folded ? ScaleForm::kFolded : ScaleForm::kInteger, Isa::kRef, &pool);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const Output d = RunInt8(**weight, &c.x, 0, s.m, &pool);
    for (int64_t m = 0; m < s.m; ++m) {
      for (int64_t n = 0; n < s.n; ++n) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (int64_t k = 0; k < s.k; ++k) {
          const double product = c.x.at(m, k) * static_cast<double>(c.weight.Dequantize(n, k));
          sum += product;
          magnitude += std::abs(product);
        }
        const auto scale = static_cast<double>(c.x.scales[static_cast<size_t>(m)]);
        // Folded scales are exact. Integer scales round to half of 1/127 (1/255) of the channel's
        // largest, and these scales lie within a factor of 16 of each other.
        const double relative = folded ? 1e-5 : 0.5 / 127.0 * 16.0;
        EXPECT_NEAR(static_cast<double>(d.at(m, n)),
                    sum * scale + static_cast<double>(c.x.bias[static_cast<size_t>(n)]),
                    relative * magnitude * scale + 1e-6);
      }
    }
  }
}

TEST(Int4Gemm, RefusesWhatItCannotRun) {
  GemmDesc desc = {.format = WeightFormat::kW4A8, .n = 8, .k = 4096, .group_size = 128};
  EXPECT_TRUE(Supports(desc, Isa::kAvx2).ok());
  desc.group_size = 0;
  EXPECT_EQ(Supports(desc, Isa::kAvx2).code(), absl::StatusCode::kInvalidArgument);
  desc.group_size = 1500;  // neither short, nor a multiple of 1024, nor all of k
  EXPECT_EQ(Supports(desc, Isa::kAvx2).code(), absl::StatusCode::kUnimplemented);
  desc.group_size = 4096;
  EXPECT_TRUE(Supports(desc, Isa::kAvx2).ok());
  desc.k = 132105;  // 127 * 128 * k > 2^31 - 1
  EXPECT_EQ(Supports(desc, Isa::kAvx512Vnni).code(), absl::StatusCode::kUnimplemented);
  desc.k = 132104;
  desc.group_size = 128;
  EXPECT_TRUE(Supports(desc, Isa::kAvx512Vnni).ok());
  desc.n = -1;
  EXPECT_EQ(Supports(desc, Isa::kRef).code(), absl::StatusCode::kInvalidArgument);
}

TEST(Int4Gemm, FoldedNeedsFoldingScales) {
  ThreadPool pool(1);
  Random random(8);
  const Int4Weight weight = MakeWeight(&random, 4, 512, 64, Scales::kPositive);
  EXPECT_EQ(PackInt4(weight, ScaleForm::kFolded, Isa::kRef, &pool).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace nibble::kernels
