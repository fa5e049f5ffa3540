// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstring>

#include "kernels/gemm/gemm.h"
#include "tests/kernels/gemm/gemm_test_case.h"

namespace nibble::kernels {
namespace {

using testing::Random;

struct Shape {
  int64_t m, n, k;
};
// Panels are 16 and 32 wide, row tiles up to 3 and 12 of equal heights, stretches of k 256 and 512,
// blocks end at 96 rows, and long rows come in chunks of some tiles: below, at and above each.
constexpr Shape kShapes[] = {
    {0, 5, 128},    {1, 1, 1},       {1, 32, 128},   {1, 33, 257},   {2, 31, 96},    {3, 17, 100},
    {4, 48, 130},   {5, 16, 72},     {6, 40, 56},    {7, 65, 256},   {8, 64, 1023},  {9, 33, 260},
    {10, 31, 515},  {11, 34, 40},    {12, 32, 1024}, {13, 33, 1160}, {14, 70, 2080}, {31, 15, 33},
    {27, 64, 2500}, {60, 20, 20001}, {97, 20, 200},  {193, 34, 136}, {200, 35, 77},
};

struct Case {
  Int8Weight weight;
  Int8Activations x;
};

// Codes over all of int8, scales of either sign.
Int8Weight MakeWeight(Random* random, int64_t n, int64_t k) {
  Int8Weight weight = {.n = n, .k = k, .codes = {}, .scales = random->Normals(n)};
  weight.codes.resize(static_cast<size_t>(n * k));
  for (int8_t& code : weight.codes) code = static_cast<int8_t>(random->Int(-128, 127));
  return weight;
}

class Int8GemmTest : public ::testing::TestWithParam<Isa> {};

TEST_P(Int8GemmTest, EqualsTheReferenceBitForBit) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(1);
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(fmt::format("m={} n={} k={}", s.m, s.n, s.k));
    const Int8Weight plain = MakeWeight(&random, s.n, s.k);
    Int8Activations x = RandomActivations(&random, s.m, s.n, s.k);
    auto reference = PackInt8(plain, Isa::kRef, &pool);
    ASSERT_TRUE(reference.ok()) << reference.status();
    auto weight = PackInt8(plain, GetParam(), &pool);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const Output expected = RunInt8(**reference, &x, 0, s.m, &pool);
    EXPECT_TRUE(SameBits(RunInt8(**weight, &x, 0, s.m, &pool), s.m, s.n, expected));
  }
}

TEST_P(Int8GemmTest, RowsDoNotDependOnTheBatch) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(2);
  const Shape s = {211, 50, 650};
  Int8Activations x = RandomActivations(&random, s.m, s.n, s.k);
  auto weight = PackInt8(MakeWeight(&random, s.n, s.k), GetParam(), &pool);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const Output all = RunInt8(**weight, &x, 0, s.m, &pool);
  for (const auto& [first, m] : {std::pair<int64_t, int64_t>{0, 1},
                                 {7, 1},
                                 {9, 5},
                                 {2, 12},
                                 {60, 32},
                                 {209, 2},
                                 {100, 70}}) {
    EXPECT_TRUE(SameBits(RunInt8(**weight, &x, first, m, &pool), m, s.n, all, first))
        << "rows " << first << " to " << first + m;
  }
}

// All products at their extremes, up to the largest k (127 * 128 * 132104 = 2^31 - 1024),
// and a kernel that saturates on the way would show.
TEST_P(Int8GemmTest, ExtremeSumsAreExact) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  for (const int64_t k : {1024, 132104}) {
    for (const int code : {-128, 127}) {
      for (const int activation : {-127, 127}) {
        for (const int64_t m : {1, 2, 5, 14}) {
          SCOPED_TRACE(fmt::format("k={} code={} a={} m={}", k, code, activation, m));
          Int8Weight plain = {.n = 2, .k = k, .codes = {}, .scales = {1.0F, -0.5F}};
          plain.codes.assign(static_cast<size_t>(2 * k), static_cast<int8_t>(code));
          Int8Activations x = ConstantActivations(m, 2, k, activation);
          auto weight = PackInt8(plain, GetParam(), &pool);
          ASSERT_TRUE(weight.ok()) << weight.status();
          const Output d = RunInt8(**weight, &x, 0, m, &pool);
          const auto sum = static_cast<float>(int64_t{code} * activation * k);
          for (int64_t row = 0; row < m; ++row) {
            EXPECT_EQ(d.at(row, 0), sum);
            EXPECT_EQ(d.at(row, 1), sum * -0.5F);
          }
        }
      }
    }
  }
}

// A row that QuantizeRows found not finite has a NaN scale: every output of it is NaN.
TEST_P(Int8GemmTest, NanScaleShows) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(1);
  Random random(3);
  Int8Activations x = RandomActivations(&random, 2, 20, 128);
  x.scales[1] = std::nanf("");
  auto weight = PackInt8(MakeWeight(&random, 20, 128), GetParam(), &pool);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const Output d = RunInt8(**weight, &x, 0, 2, &pool);
  for (int64_t n = 0; n < 20; ++n) {
    EXPECT_FALSE(std::isnan(d.at(0, n)));
    EXPECT_TRUE(std::isnan(d.at(1, n)));
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas, Int8GemmTest, ::testing::ValuesIn(kAllIsas), IsaName);

TEST(Int8Gemm, RefusesWhatItCannotRun) {
  ThreadPool pool(1);
  GemmDesc desc = {.format = WeightFormat::kW8A8, .n = 8, .k = 132104};
  for (const Isa isa : kAllIsas) {
    EXPECT_TRUE(Supports(desc, isa).ok()) << ToString(isa);
  }
  desc.k = 132105;  // 127 * 128 * k > 2^31 - 1
  const absl::Status status = Supports(desc, Isa::kAvx512Vnni);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(status.message().find("132105"), absl::string_view::npos) << status;
  EXPECT_EQ(
      PackInt8({.n = 2, .k = 2, .codes = {1}, .scales = {1, 1}}, Isa::kRef, &pool).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST(Int8Gemm, QuantizedMatrixMultipliesAsTheMatrixDoes) {
  ThreadPool pool(2);
  Random random(4);
  const Shape s = {3, 9, 200};
  const std::vector<float> matrix = random.Normals(s.n * s.k);
  auto plain = QuantizeInt8(matrix.data(), s.n, s.k, &pool);
  ASSERT_TRUE(plain.ok()) << plain.status();
  Int8Activations x = RandomActivations(&random, s.m, s.n, s.k);
  auto weight = PackInt8(*plain, Isa::kRef, &pool);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const Output d = RunInt8(**weight, &x, 0, s.m, &pool);
  for (int64_t m = 0; m < s.m; ++m) {
    for (int64_t n = 0; n < s.n; ++n) {
      double sum = 0.0;
      double error = 0.0;
      for (int64_t k = 0; k < s.k; ++k) {
        const double a = x.at(m, k) * static_cast<double>(x.scales[static_cast<size_t>(m)]);
        sum += a * static_cast<double>(matrix[static_cast<size_t>(n * s.k + k)]);
        error += std::abs(a) * 0.5 * static_cast<double>(plain->scales[static_cast<size_t>(n)]);
      }
      EXPECT_NEAR(static_cast<double>(d.at(m, n)),
                  sum + static_cast<double>(x.bias[static_cast<size_t>(n)]), 1.001 * error);
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
