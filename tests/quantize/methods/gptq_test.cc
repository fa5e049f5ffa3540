// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/gptq.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "quantize/methods/clip.h"
#include "quantize/methods/rounding.h"
#include "tests/testing/random.h"

namespace nibble::quantize {
namespace {

using testing::Random;

// Inputs that are correlated, some channels larger than others, as activations are.
InputStatistics Correlated(int64_t k, int64_t num_tokens, Random* random) {
  InputStatistics statistics;
  statistics.k = k;
  statistics.num_tokens = num_tokens;
  statistics.hessian.resize(static_cast<size_t>(k * k));
  std::vector<float> size(static_cast<size_t>(k));
  for (float& s : size) s = random->Int(0, 9) == 0 ? 4.0F : random->Uniform(0.2F, 1.0F);
  std::vector<float> x(static_cast<size_t>(k));
  for (int64_t token = 0; token < num_tokens; ++token) {
    float previous = 0.0F;
    for (int64_t i = 0; i < k; ++i) {
      previous = 0.7F * previous + random->Normal();
      x[static_cast<size_t>(i)] = previous * size[static_cast<size_t>(i)];
    }
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        statistics.hessian[static_cast<size_t>(i * k + j)] +=
            static_cast<double>(x[static_cast<size_t>(i)]) *
            static_cast<double>(x[static_cast<size_t>(j)]) / static_cast<double>(num_tokens);
      }
    }
  }
  return statistics;
}

Matrix RandomMatrix(int64_t n, int64_t k, Random* random) {
  return {.name = "m", .n = n, .k = k, .weight = random->Normals(n * k, 0.05F)};
}

TEST(Gptq, CostsLessThanRoundToNearest) {
  ThreadPool pool(2);
  for (const int64_t k : {32, 128, 256}) {
    Random random(static_cast<uint32_t>(k));
    const InputStatistics statistics = Correlated(k, 2 * k, &random);
    const Matrix matrix = RandomMatrix(9, k, &random);
    for (const WeightScheme& scheme :
         {WeightScheme{.group_size = 32}, WeightScheme{.group_size = k},
          WeightScheme{.group_size = 32, .folded_scales = false}, WeightScheme{.bits = 8}}) {
      auto factor = HessianFactor::Create("m", statistics, {}, &pool);
      ASSERT_TRUE(factor.ok()) << factor.status();
      auto gptq = QuantizeGptq(matrix, statistics, *factor, scheme, {}, &pool);
      ASSERT_TRUE(gptq.ok()) << gptq.status();
      auto rtn = QuantizeRtnMatrix(matrix.weight.data(), matrix.n, k, scheme, &pool);
      ASSERT_TRUE(rtn.ok()) << rtn.status();
      auto rtn_error = OutputError(matrix.weight.data(), *rtn, statistics, &pool);
      ASSERT_TRUE(rtn_error.ok());
      EXPECT_LT(gptq->output_error, *rtn_error);
    }
  }
}

}  // namespace
}  // namespace nibble::quantize
