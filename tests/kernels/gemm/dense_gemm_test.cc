// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstring>

#include "base/float16.h"
#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/gemm.h"
#include "tests/kernels/gemm/gemm_test_case.h"
#include "tests/testing/compare.h"

namespace nibble::kernels {
namespace {

using testing::AllWithin;
using testing::Matrix;
using testing::Random;

struct Shape {
  int64_t m, n, k;
};
// Tiles are 3 x 32 and 6 x 64, stretches of k 256, row blocks 192: below, at and above each.
constexpr Shape kShapes[] = {
    {0, 5, 7},   {1, 1, 1},    {1, 64, 256}, {1, 63, 257},   {2, 65, 255},  {3, 33, 31},
    {5, 31, 64}, {6, 64, 128}, {7, 127, 97}, {13, 130, 300}, {32, 17, 513}, {193, 40, 70},
};
constexpr DType kStorages[] = {DType::kF32, DType::kBf16, DType::kF16};

class DenseGemmTest : public ::testing::TestWithParam<Isa> {};

std::vector<uint8_t> Store(const std::vector<float>& values, DType storage) {
  std::vector<uint8_t> bytes(values.size() * SizeOf(storage));
  for (size_t i = 0; i < values.size(); ++i) {
    StoreElement(values[i], storage, static_cast<int64_t>(i), bytes.data());
  }
  return bytes;
}

TEST_P(DenseGemmTest, MatchesDoublePrecision) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(1);
  for (const DType storage : kStorages) {
    for (const Shape& s : kShapes) {
      SCOPED_TRACE(fmt::format("{} m={} n={} k={}", ToString(storage), s.m, s.n, s.k));
      const int64_t a_stride = s.k + 5;
      const std::vector<float> a = PaddedNormals(&random, s.m, s.k, a_stride);
      const std::vector<uint8_t> b = Store(random.Normals(s.n * s.k), storage);
      const std::vector<float> bias = random.Normals(s.n);
      auto weight = PackDense(b.data(), storage, s.n, s.k, storage, GetParam(), &pool);
      ASSERT_TRUE(weight.ok()) << weight.status();
      Output d(s.m, s.n, s.n + 3);
      kernels::Run(**weight,
                   {.m = s.m,
                    .a = a.data(),
                    .a_stride = a_stride,
                    .bias = bias.data(),
                    .d = d.data(),
                    .d_stride = d.stride()},
                   &pool);
      EXPECT_TRUE(d.CanariesIntact());
      std::vector<double> expected(static_cast<size_t>(s.m * s.n));
      std::vector<double> magnitude(static_cast<size_t>(s.m * s.n));
      for (int64_t m = 0; m < s.m; ++m) {
        for (int64_t n = 0; n < s.n; ++n) {
          double sum = 0.0;
          double size = std::abs(static_cast<double>(bias[static_cast<size_t>(n)]));
          for (int64_t k = 0; k < s.k; ++k) {
            const double product = static_cast<double>(a[static_cast<size_t>(m * a_stride + k)]) *
                                   static_cast<double>(LoadElement(b.data(), storage, n * s.k + k));
            sum += product;
            size += std::abs(product);
          }
          expected[static_cast<size_t>(m * s.n + n)] =
              sum + static_cast<double>(bias[static_cast<size_t>(n)]);
          magnitude[static_cast<size_t>(m * s.n + n)] = size;
        }
      }
      for (int64_t m = 0; m < s.m; ++m) {
        for (int64_t n = 0; n < s.n; ++n) {
          const auto i = static_cast<size_t>(m * s.n + n);
          // k fused additions and the bias, each off by at most half a unit in the last place
          // (2^-24) of a partial sum, which never exceeds the sum of magnitudes; the second-order
          // terms are below 1 % for k < 10^5 (Higham, Accuracy and Stability, 3.1).
          double bound = 1.01 * static_cast<double>(s.k + 1) * 0x1p-24 * magnitude[i];
          // Tiles of bfloat16 round the activations to 8 significant bits, and add two more times.
          if ((*weight)->variant_name() == "dense_bf16_amx") {
            bound += (0x1p-8 + 2 * 0x1p-24) * magnitude[i];
          }
          ASSERT_NEAR(static_cast<double>(d.at(m, n)), expected[i], bound) << m << ", " << n;
        }
      }
    }
  }
}

TEST_P(DenseGemmTest, RowsDoNotDependOnTheBatch) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(2);
  constexpr int64_t kRows = 205;
  constexpr int64_t kN = 101;
  constexpr int64_t kK = 777;
  const std::vector<float> a = PaddedNormals(&random, kRows, kK, kK);
  for (const DType storage : kStorages) {
    const std::vector<uint8_t> b = Store(random.Normals(kN * kK), storage);
    auto weight = PackDense(b.data(), storage, kN, kK, storage, GetParam(), &pool);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const auto run = [&](int64_t first, int64_t m) {
      Output d(m, kN, kN);
      kernels::Run(
          **weight,
          {.m = m, .a = a.data() + first * kK, .a_stride = kK, .d = d.data(), .d_stride = kN},
          &pool);
      return d;
    };
    const Output all = run(0, kRows);
    for (const auto& [first, m] :
         {std::pair<int64_t, int64_t>{0, 1}, {31, 1}, {5, 32}, {100, 7}, {203, 2}, {17, 96}}) {
      const Output some = run(first, m);
      EXPECT_EQ(std::memcmp(some.data(), all.data() + first * kN,
                            static_cast<size_t>(m * kN) * sizeof(float)),
                0)
          << ToString(storage) << " rows " << first << " to " << first + m;
    }
  }
}

TEST_P(DenseGemmTest, ConvertsWhilePacking) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(1);
  // 1 + 2^-9 lies between two bfloat16 and is a tie that goes to even (1); float16 holds it.
  const float source[] = {1.0F + 0x1p-9F, 3.0F};
  const float one[] = {1.0F, 0.0F};
  for (const auto& [target, expected] : {std::pair<DType, float>{DType::kF32, 1.0F + 0x1p-9F},
                                         {DType::kBf16, 1.0F},
                                         {DType::kF16, 1.0F + 0x1p-9F}}) {
    auto weight = PackDense(source, DType::kF32, 1, 2, target, GetParam(), &pool);
    ASSERT_TRUE(weight.ok()) << weight.status();
    float d = 0.0F;
    kernels::Run(**weight, {.m = 1, .a = one, .a_stride = 2, .d = &d, .d_stride = 1}, &pool);
    EXPECT_EQ(d, expected) << ToString(target);
  }
}

INSTANTIATE_TEST_SUITE_P(AllIsas, DenseGemmTest, ::testing::ValuesIn(kAllIsas), IsaName);

TEST(DenseGemm, RefusesOtherElementTypes) {
  ThreadPool pool(1);
  const uint8_t bytes[4] = {};
  EXPECT_EQ(PackDense(bytes, DType::kI8, 1, 1, DType::kF32, Isa::kRef, &pool).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(PackDense(bytes, DType::kF32, 1, 1, DType::kI8, Isa::kAvx2, &pool).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(PackDense(bytes, DType::kF32, 1, 0, DType::kF32, Isa::kRef, &pool).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble::kernels
