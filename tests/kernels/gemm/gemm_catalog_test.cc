// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "gtest/gtest.h"

#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

TEST(GemmCatalog, ChoosesTheHighestVariantNotAboveTheIsa) {
  const GemmDesc dense = {.storage = DType::kBf16, .n = 1, .k = 1};
  EXPECT_EQ(ChooseVariant(dense, Isa::kRef)->name, "dense_bf16_ref");
  EXPECT_EQ(ChooseVariant(dense, Isa::kAvx2)->name, "dense_bf16_avx2");
  EXPECT_EQ(ChooseVariant(dense, Isa::kAvx512Vnni)->name, "dense_bf16_avx512vnni");
  const GemmDesc int4 = {
      .format = WeightFormat::kW4A8, .scale_form = ScaleForm::kInteger, .n = 1, .k = 1};
  EXPECT_EQ(ChooseVariant(int4, Isa::kRef)->name, "w4a8_integer_ref");
  EXPECT_EQ(ChooseVariant(int4, Isa::kAvx2)->name, "w4a8_integer_avx2");
  const GemmDesc int8 = {.format = WeightFormat::kW8A8, .n = 1, .k = 1};
  EXPECT_EQ(ChooseVariant(int8, Isa::kRef)->name, "w8a8_ref");
  EXPECT_EQ(ChooseVariant(int8, Isa::kAvx2)->name, "w8a8_avx2");
  EXPECT_EQ(ChooseVariant(int8, Isa::kAvx512Vnni)->name, "w8a8_avx512vnni");
  EXPECT_EQ(ChooseVariant({.storage = DType::kI64}, Isa::kAmx), nullptr);
}

// An ISA without a variant of its own gets the next lower one, and the weight says which.
TEST(GemmCatalog, PackedWeightNamesTheVariantThatRuns) {
  ThreadPool pool(1);
  const float weights[] = {1.0F};
  auto packed = PackDense(weights, DType::kF32, 1, 1, DType::kF16, Isa::kAmx, &pool);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ((*packed)->variant_name(), "dense_f16_avx512vnni");
  EXPECT_EQ((*packed)->isa(), Isa::kAvx512Vnni);
}

TEST(GemmCatalog, DescriptionsAreReadable) {
  EXPECT_EQ(ToString(GemmDesc{.storage = DType::kF32, .n = 3, .k = 4}), "dense float32 n=3 k=4");
  EXPECT_EQ(ToString(GemmDesc{.format = WeightFormat::kW4A8, .n = 3, .k = 4}),
            "w4a8 folded n=3 k=4 group=128");
  EXPECT_EQ(ToString(GemmDesc{.format = WeightFormat::kW8A8, .n = 3, .k = 4}), "w8a8 n=3 k=4");
}

}  // namespace
}  // namespace nibble::kernels
