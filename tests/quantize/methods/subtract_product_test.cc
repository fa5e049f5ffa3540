// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/subtract_product.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::quantize {
namespace {

using testing::AllEqual;
using testing::Random;

struct Variant {
  const char* name;
  Isa isa;
  SubtractProductFunction function;
};

constexpr Variant kVariants[] = {{"ref", Isa::kRef, &ref::SubtractProduct},
                                 {"avx2", Isa::kAvx2, &avx2::SubtractProduct},
                                 {"avx512vnni", Isa::kAvx512Vnni, &avx512vnni::SubtractProduct}};

class SubtractProductTest : public ::testing::TestWithParam<Variant> {};

// Bit for bit: each product is rounded and subtracted in the order of depth.
TEST_P(SubtractProductTest, IsThePlainLoopToTheBit) {
  if (GetParam().isa > HostCpuFeatures().Best())
    GTEST_SKIP() << "this CPU lacks " << GetParam().name;
  Random random(21);
  constexpr double kCanary = 12345.0;
  for (const int64_t m : {0, 1, 3, 4, 5, 13}) {
    for (const int64_t n : {0, 1, 7, 8, 31, 32, 33, 71}) {
      for (const int64_t depth : {0, 1, 5, 128, 131, 300}) {
        const int64_t lda = depth + 3;
        const int64_t ldb = n + 2;
        const int64_t ldc = n + 5;
        const auto fill = [&](int64_t count) {
          std::vector<double> values(static_cast<size_t>(count));
          for (double& v : values) {
            v = static_cast<double>(random.Normal()) + static_cast<double>(random.Normal()) * 1e-9;
          }
          return values;
        };
        const std::vector<double> a = fill(m * lda + 1);
        const std::vector<double> b = fill(depth * ldb + 1);
        std::vector<double> c = fill(m * ldc + 1);
        for (int64_t row = 0; row < m; ++row) {
          for (int64_t j = n; j < ldc; ++j) c[static_cast<size_t>(row * ldc + j)] = kCanary;
        }
        std::vector<double> expected = c;
        for (int64_t row = 0; row < m; ++row) {
          for (int64_t i = 0; i < depth; ++i) {
            for (int64_t j = 0; j < n; ++j) {
              // volatile: no compiler flag may fuse the reference.
              volatile double product =
                  a[static_cast<size_t>(row * lda + i)] * b[static_cast<size_t>(i * ldb + j)];
              expected[static_cast<size_t>(row * ldc + j)] -= product;
            }
          }
        }
        GetParam().function({.m = m,
                             .n = n,
                             .depth = depth,
                             .a = a.data(),
                             .lda = lda,
                             .b = b.data(),
                             .ldb = ldb,
                             .c = c.data(),
                             .ldc = ldc});
        ASSERT_TRUE(AllEqual<double>({c.data(), m, ldc, ldc}, {expected.data(), m, ldc, ldc}))
            << m << " x " << n << ", depth " << depth;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, SubtractProductTest, ::testing::ValuesIn(kVariants),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace nibble::quantize
