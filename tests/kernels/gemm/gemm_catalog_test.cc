// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <string_view>

#include "gtest/gtest.h"

#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

// The whole catalog: what runs each format on each instruction set. A line that is lost would only
// make it slower.
TEST(GemmCatalog, NamesOfAllFormats) {
  using enum ScaleForm;
  struct Line {
    GemmDesc desc;
    std::string_view names[4];  // ref, avx2, avx512vnni, amx
  };
  const auto dense = [](DType storage) { return GemmDesc{.storage = storage}; };
  const auto w4a8 = [](ScaleForm form) {
    return GemmDesc{.format = WeightFormat::kW4A8, .scale_form = form};
  };
  const Line lines[] = {
      {dense(DType::kF32),
       {"dense_f32_ref", "dense_f32_avx2", "dense_f32_avx512vnni", "dense_f32_avx512vnni"}},
      {dense(DType::kBf16),
       {"dense_bf16_ref", "dense_bf16_avx2", "dense_bf16_avx512vnni", "dense_bf16_amx"}},
      {dense(DType::kF16),
       {"dense_f16_ref", "dense_f16_avx2", "dense_f16_avx512vnni", "dense_f16_avx512vnni"}},
      {w4a8(kFolded),
       {"w4a8_folded_ref", "w4a8_folded_avx2", "w4a8_folded_avx512vnni", "w4a8_folded_amx"}},
      {w4a8(kInteger),
       {"w4a8_integer_ref", "w4a8_integer_avx2", "w4a8_integer_avx512vnni", "w4a8_integer_amx"}},
      {w4a8(kFloat),
       {"w4a8_float_ref", "w4a8_float_avx2", "w4a8_float_avx512vnni", "w4a8_float_amx"}},
      {{.format = WeightFormat::kW8A8}, {"w8a8_ref", "w8a8_avx2", "w8a8_avx512vnni", "w8a8_amx"}},
      {{.format = WeightFormat::kW4A16},
       {"w4a16_ref", "w4a16_avx2", "w4a16_avx512vnni", "w4a16_avx512vnni"}},
  };
  for (const Line& line : lines) {
    for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx}) {
      const GemmVariant* variant = ChooseVariant(line.desc, isa);
      ASSERT_NE(variant, nullptr) << ToString(line.desc) << " on " << ToString(isa);
      EXPECT_EQ(variant->name, line.names[static_cast<size_t>(isa)]);
      const int packs = (variant->pack_dense != nullptr ? 1 : 0) +
                        (variant->pack_int4 != nullptr ? 1 : 0) +
                        (variant->pack_int8 != nullptr ? 1 : 0);
      EXPECT_EQ(packs, 1) << variant->name;
    }
  }
  for (const DType storage : {DType::kI8, DType::kU8, DType::kI64}) {
    EXPECT_EQ(ChooseVariant(dense(storage), Isa::kAmx), nullptr) << ToString(storage);
  }
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
