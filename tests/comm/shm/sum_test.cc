// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/shm/sum.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "tests/testing/random.h"

namespace nibble::comm::shm {
namespace {

struct Variant {
  Isa isa;
  SumFunction sum;
};

class SumTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (GetParam().isa > HostCpuFeatures().Best()) GTEST_SKIP() << "not on this machine";
  }
};

// In rank order, whatever comes out: the bits of the plain loop, unaligned, beside canaries.
TEST_P(SumTest, HasTheBitsOfTheLoopInRankOrder) {
  testing::Random random(1);
  for (const int num_sources : {1, 2, 3, 4, 5, 8}) {
    for (const int64_t count : {0, 1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 300}) {
      std::vector<std::vector<float>> values;
      std::vector<const float*> sources;
      for (int i = 0; i < num_sources; ++i) {
        values.push_back(random.Normals(count + 1, i % 2 == 0 ? 1e6F : 1e-3F));
      }
      for (const auto& source : values) sources.push_back(source.data() + 1);
      if (count > 3) values[0][3] = std::numeric_limits<float>::infinity();
      std::vector<float> expected(static_cast<size_t>(count) + 2, -7.0F);
      for (int64_t i = 0; i < count; ++i) {
        float sum = sources[0][i];
        for (int j = 1; j < num_sources; ++j) sum += sources[static_cast<size_t>(j)][i];
        expected[static_cast<size_t>(i) + 1] = sum;
      }
      std::vector<float> sum(static_cast<size_t>(count) + 2, -7.0F);
      GetParam().sum(sources.data(), num_sources, sum.data() + 1, count);
      EXPECT_EQ(sum, expected) << num_sources << " sources of " << count;

      // Over its last source.
      float* const last = values.back().data() + 1;
      GetParam().sum(sources.data(), num_sources, last, count);
      EXPECT_TRUE(std::equal(last, last + count, expected.data() + 1));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, SumTest,
                         ::testing::Values(Variant{Isa::kRef, ref::Sum},
                                           Variant{Isa::kAvx2, avx2::Sum},
                                           Variant{Isa::kAvx512Vnni, avx512vnni::Sum}),
                         [](const auto& variant) {
                           return std::string(ToString(variant.param.isa));
                         });

}  // namespace
}  // namespace nibble::comm::shm
