// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/gemm.h"
#include "tests/kernels/gemm/gemm_test_case.h"

namespace nibble::kernels {
namespace {

using testing::Random;

struct Shape {
  int64_t m, n, k, group;
};
// Panels are 32 and 64 wide, row tiles 3 and 6, row blocks 192, stretches of k 64 and 128, words 8
// k: below, at and above each; groups that end anywhere in them.
constexpr Shape kShapes[] = {
    {0, 5, 7, 4},     {1, 1, 1, 1},     {1, 64, 128, 128},  {1, 65, 257, 128},
    {2, 31, 64, 32},  {3, 33, 63, 7},   {4, 130, 300, 64},  {5, 40, 65, 65},
    {6, 63, 129, 24}, {7, 32, 136, 10}, {13, 70, 520, 520}, {193, 34, 136, 4096},
};

Int4Weight MakeWeight(Random* random, const Shape& s, bool has_zeros) {
  Int4Weight weight = {.n = s.n, .k = s.k, .group_size = s.group};
  weight.codes.resize(static_cast<size_t>(s.n * weight.row_bytes()));
  for (uint8_t& byte : weight.codes) byte = static_cast<uint8_t>(random->Bits());
  weight.scales = random->Normals(s.n * weight.num_groups());  // of either sign
  if (has_zeros) {
    for (size_t i = 0; i < weight.scales.size(); ++i) {
      weight.zero_points.push_back(static_cast<uint8_t>(random->Int(0, 15)));
    }
  }
  return weight;
}

class Int4FloatGemmTest : public ::testing::TestWithParam<Isa> {};

// The dense test says that these are right, and that rows do not depend on the batch.
TEST_P(Int4FloatGemmTest, EqualsDequantizedWeightsBitForBit) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(1);
  for (const Shape& s : kShapes) {
    for (const bool has_zeros : {false, true}) {
      SCOPED_TRACE(
          fmt::format("m={} n={} k={} group={} zeros={}", s.m, s.n, s.k, s.group, has_zeros));
      const Int4Weight plain = MakeWeight(&random, s, has_zeros);
      std::vector<float> dequantized;
      for (int64_t n = 0; n < s.n; ++n) {
        for (int64_t k = 0; k < s.k; ++k) dequantized.push_back(plain.Dequantize(n, k));
      }
      auto weight = PackInt4Float(plain, GetParam(), &pool);
      ASSERT_TRUE(weight.ok()) << weight.status();
      auto dense =
          PackDense(dequantized.data(), DType::kF32, s.n, s.k, DType::kF32, GetParam(), &pool);
      ASSERT_TRUE(dense.ok()) << dense.status();
      const int64_t a_stride = s.k + 5;
      const std::vector<float> a = PaddedNormals(&random, s.m, s.k, a_stride);
      const std::vector<float> bias = random.Normals(s.n);
      const auto run = [&](const PackedWeight& packed) {
        Output d(s.m, s.n, s.n + 3);
        const GemmArgs args = {.m = s.m,
                               .a = a.data(),
                               .a_stride = a_stride,
                               .bias = bias.data(),
                               .d = d.data(),
                               .d_stride = d.stride()};
        kernels::Run(packed, args, &pool);
        EXPECT_TRUE(d.CanariesIntact());
        return d;
      };
      EXPECT_TRUE(SameBits(run(**weight), s.m, s.n, run(**dense)));
    }
  }
}

TEST_P(Int4FloatGemmTest, HoldsFourBitsAndTheScales) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(1);
  Random random(2);
  auto weight = PackInt4Float(MakeWeight(&random, {1, 64, 1024, 128}, false), GetParam(), &pool);
  ASSERT_TRUE(weight.ok()) << weight.status();
  EXPECT_EQ((*weight)->size_bytes(), 64U * 1024U / 2U + 64U * 8U * 4U);
  EXPECT_FALSE(TakesInt8((*weight)->desc().format));
}

INSTANTIATE_TEST_SUITE_P(AllIsas, Int4FloatGemmTest, ::testing::ValuesIn(kAllIsas), IsaName);

TEST(Int4FloatGemm, RefusesWhatItCannotRun) {
  ThreadPool pool(1);
  Random random(3);
  Int4Weight weight = MakeWeight(&random, {1, 4, 16, 8}, false);
  weight.group_size = 0;
  EXPECT_EQ(PackInt4Float(weight, Isa::kRef, &pool).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ToString(GemmDesc{.format = WeightFormat::kW4A16, .n = 3, .k = 4}),
            "w4a16 n=3 k=4 group=128");
}

}  // namespace
}  // namespace nibble::kernels
