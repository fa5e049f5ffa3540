// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/moe/combine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/moe/permute.h"
#include "tests/testing/random.h"

namespace nibble::kernels {
namespace {

using ::nibble::testing::Random;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kHiddens[] = {1, 7, 8, 31, 32, 33, 63, 64, 65, 100, 288, 2048, 17000};

class CombineTest : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > HostCpuFeatures().Best()) {
      GTEST_SKIP() << "this machine has no " << ToString(GetParam());
    }
  }
  ThreadPool pool_{2};
};

// Rows in any order, some of them other ranks'. Strides are larger than rows, NaN between.
struct Case {
  Case(Random& random, int64_t tokens, int64_t experts_per_tok, int64_t columns)
      : num_tokens(tokens),
        k(experts_per_tok),
        hidden(columns),
        y_stride(hidden + 5),
        out_stride(hidden + 3),
        weights(random.Normals(num_tokens * k)),
        row_of(weights.size()),
        y(static_cast<size_t>(num_tokens * k * y_stride), kNaN),
        out(static_cast<size_t>(num_tokens * out_stride), kNaN) {
    Fill(random, y_stride, &y);
    Fill(random, out_stride, &out);
    std::iota(row_of.begin(), row_of.end(), 0);
    for (size_t i = row_of.size(); i > 1; --i) {
      std::swap(row_of[i - 1], row_of[random.Bits() % i]);
    }
    for (int32_t& row : row_of) {
      if (random.Int(0, 3) == 0) row = -1;
    }
  }

  void Fill(Random& random, int64_t stride, std::vector<float>* rows) const {
    for (size_t i = 0; i < rows->size(); ++i) {
      if (static_cast<int64_t>(i) % stride < hidden) (*rows)[i] = random.Normal();
    }
  }

  std::vector<float> Run(bool accumulate, Isa isa, ThreadPool* pool) const {
    std::vector<float> result = out;
    Combine({.num_tokens = num_tokens,
             .num_experts_per_tok = k,
             .hidden = hidden,
             .weights = weights.data(),
             .row_of = row_of.data(),
             .y = y.data(),
             .y_stride = y_stride,
             .accumulate = accumulate,
             .out = result.data(),
             .out_stride = out_stride},
            isa, pool);
    return result;
  }

  int64_t num_tokens;
  int64_t k;
  int64_t hidden;
  int64_t y_stride;
  int64_t out_stride;
  std::vector<float> weights;
  std::vector<int32_t> row_of;
  std::vector<float> y;
  std::vector<float> out;
};

TEST_P(CombineTest, IsTheEquation) {
  Random random(1);
  for (const int64_t k : {1, 2, 3, 8, 9, 17}) {
    const Case c(random, 5, k, 100);
    for (const bool accumulate : {false, true}) {
      const std::vector<float> actual = c.Run(accumulate, GetParam(), &pool_);
      for (int64_t t = 0; t < c.num_tokens; ++t) {
        for (int64_t i = 0; i < c.hidden; ++i) {
          const auto at = static_cast<size_t>(t * c.out_stride + i);
          double sum = accumulate ? static_cast<double>(c.out[at]) : 0.0;
          double magnitude = std::abs(sum);
          for (int64_t j = 0; j < k; ++j) {
            const int32_t row = c.row_of[static_cast<size_t>(t * k + j)];
            if (row < 0) continue;
            const double term = static_cast<double>(c.weights[static_cast<size_t>(t * k + j)]) *
                                c.y[static_cast<size_t>(row * c.y_stride + i)];
            sum += term;
            magnitude += std::abs(term);
          }
          // Each of k roundings is at most half a unit of a partial sum.
          EXPECT_NEAR(actual[at], sum, magnitude * static_cast<double>(k) * 0x1p-24);
        }
      }
    }
  }
}

TEST_P(CombineTest, IsTheReferenceToTheBitAndWritesNothingElse) {
  Random random(2);
  for (const int64_t hidden : kHiddens) {
    for (const int64_t k : {1, 2, 8, 11}) {
      const Case c(random, hidden > 10000 ? 2 : 7, k, hidden);
      for (const bool accumulate : {false, true}) {
        const std::vector<float> expected = c.Run(accumulate, Isa::kRef, &pool_);
        const std::vector<float> actual = c.Run(accumulate, GetParam(), &pool_);
        EXPECT_EQ(std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(float)), 0)
            << "hidden " << hidden << ", k " << k << ", accumulate " << accumulate;
        for (int64_t t = 0; t < c.num_tokens; ++t) {
          for (int64_t i = c.hidden; i < c.out_stride; ++i) {
            EXPECT_TRUE(std::isnan(actual[static_cast<size_t>(t * c.out_stride + i)]));
          }
        }
      }
    }
  }
}

TEST_P(CombineTest, ATokenDependsOnItselfAlone) {
  Random random(3);
  Case c(random, 300, 4, 65);
  const std::vector<float> all = c.Run(false, GetParam(), &pool_);
  c.num_tokens = 1;
  EXPECT_EQ(c.Run(false, GetParam(), &pool_)[64], all[64]);
  for (int64_t t : {63, 299}) {
    std::copy_n(c.row_of.begin() + t * 4, 4, c.row_of.begin());
    std::copy_n(c.weights.begin() + t * 4, 4, c.weights.begin());
    const std::vector<float> one = c.Run(false, GetParam(), &pool_);
    EXPECT_EQ(std::memcmp(one.data(), all.data() + t * c.out_stride, 65 * sizeof(float)), 0);
  }
}

TEST_P(CombineTest, TokensWithoutARow) {
  Random random(4);
  Case c(random, 3, 2, 70);
  std::fill(c.row_of.begin() + 2, c.row_of.begin() + 4, -1);
  const std::vector<float> written = c.Run(false, GetParam(), &pool_);
  const std::vector<float> added = c.Run(true, GetParam(), &pool_);
  for (int64_t i = c.out_stride; i < c.out_stride + c.hidden; ++i) {
    EXPECT_EQ(written[static_cast<size_t>(i)], 0.0F);
    EXPECT_FALSE(std::signbit(written[static_cast<size_t>(i)]));
    EXPECT_EQ(added[static_cast<size_t>(i)], c.out[static_cast<size_t>(i)]) << "was touched";
  }
}

// Rows that go to experts which do nothing come back as they were, whatever their order was.
TEST_P(CombineTest, PermutedAndCombinedIsTheSame) {
  Random random(5);
  const int64_t num_tokens = 50;
  const int64_t k = 2;
  const int64_t hidden = 40;
  const std::vector<float> x = random.Normals(num_tokens * hidden);
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens * k));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.Int(0, 7));
  std::vector<float> out(x.size(), kNaN);
  for (const int32_t first : {0, 3}) {  // two ranks: experts 0..2 and 3..7
    const int32_t num_slots = first == 0 ? 3 : 5;
    std::vector<int32_t> offsets(static_cast<size_t>(num_slots) + 1);
    std::vector<int32_t> token_of_row(ids.size());
    std::vector<int32_t> row_of(ids.size());
    Permute({.num_tokens = num_tokens,
             .num_experts_per_tok = k,
             .slot_ids = ids.data(),
             .first_slot = first,
             .num_slots = num_slots,
             .offsets = offsets.data(),
             .token_of_row = token_of_row.data(),
             .row_of = row_of.data()});
    std::vector<float> y(static_cast<size_t>(offsets.back() * hidden));
    for (int64_t row = 0; row < offsets.back(); ++row) {
      std::copy_n(x.begin() + token_of_row[static_cast<size_t>(row)] * hidden, hidden,
                  y.begin() + row * hidden);
    }
    const std::vector<float> weights(ids.size(), 0.5F);
    Combine({.num_tokens = num_tokens,
             .num_experts_per_tok = k,
             .hidden = hidden,
             .weights = weights.data(),
             .row_of = row_of.data(),
             .y = y.data(),
             .y_stride = hidden,
             .accumulate = first != 0,
             .out = out.data(),
             .out_stride = hidden},
            GetParam(), &pool_);
  }
  EXPECT_EQ(out, x);
}

TEST_P(CombineTest, NoTokensAreFine) {
  Combine({.num_tokens = 0, .num_experts_per_tok = 2, .hidden = 8}, GetParam(), &pool_);
}

TEST_P(CombineTest, TokensHaveAnExpert) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(Combine({.num_tokens = 1, .hidden = 8}, GetParam(), &pool_), "num_experts_per_tok");
}

INSTANTIATE_TEST_SUITE_P(Variants, CombineTest,
                         ::testing::Values(Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx),
                         [](const auto& variant) { return std::string(ToString(variant.param)); });

}  // namespace
}  // namespace nibble::kernels
