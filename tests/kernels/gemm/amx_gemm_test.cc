// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is particular to AMX: the choice of its variants and how work is cut. That its variants
// compute what they should is in the tests of all variants, which run them too.

#include "kernels/gemm/amx_gemm.h"

#include <algorithm>

#include "gtest/gtest.h"

#include "kernels/gemm/gemm_variant.h"

namespace nibble::kernels {
namespace {

TEST(AmxGemm, HasItsVariantsAndLeavesTheRestToAvx512) {
  GemmDesc desc = {.format = WeightFormat::kW4A8, .n = 1, .k = 1};
  EXPECT_EQ(ChooseVariant(desc, Isa::kAmx)->name, "w4a8_folded_amx");
  EXPECT_EQ(ChooseVariant(desc, Isa::kAvx512Vnni)->name, "w4a8_folded_avx512vnni");
  desc.scale_form = ScaleForm::kInteger;
  EXPECT_EQ(ChooseVariant(desc, Isa::kAmx)->name, "w4a8_integer_amx");
  desc.scale_form = ScaleForm::kFloat;
  EXPECT_EQ(ChooseVariant(desc, Isa::kAmx)->name, "w4a8_float_amx");
  desc = {.storage = DType::kBf16, .n = 1, .k = 1};
  EXPECT_EQ(ChooseVariant(desc, Isa::kAmx)->name, "dense_bf16_amx");
  EXPECT_EQ(ChooseVariant(desc, Isa::kAvx512Vnni)->name, "dense_bf16_avx512vnni");
  desc.storage = DType::kF32;
  EXPECT_EQ(ChooseVariant(desc, Isa::kAmx)->name, "dense_f32_avx512vnni");
}

// Blocks: rows in whole pairs of tiles, at most 512; sums and a stretch of activations fit 1 MiB of
// second-level cache; enough units for every thread where the shape has them.
TEST(AmxGemm, UnitsFitTheCacheAndServeAllThreads) {
  for (const int64_t m : {1, 9, 16, 33, 100, 128, 512, 513, 1024, 5000}) {
    for (const int64_t row_bytes : {64, 4096, 14336, 132096}) {
      for (const int64_t num_panels : {1, 3, 32, 448, 4008}) {
        for (const int64_t threads : {1, 2, 16, 64}) {
          SCOPED_TRACE(::testing::Message() << "m=" << m << " row_bytes=" << row_bytes
                                            << " panels=" << num_panels << " threads=" << threads);
          const AmxUnits unit = ChooseAmxUnits(m, row_bytes, num_panels, threads);
          EXPECT_GE(unit.rows, 32);
          EXPECT_LE(unit.rows, 512);
          EXPECT_EQ(unit.rows % 32, 0);
          EXPECT_GE(unit.panels, 1);
          EXPECT_LE(unit.panels, num_panels);
          const int64_t sums = unit.rows * unit.panels * kAmxPanel * 4;
          const int64_t stretch = unit.rows * kAmxStretchSteps * kAmxRowBytes;
          EXPECT_LE(sums + stretch, 1 << 20);
          const int64_t units =
              ((m + unit.rows - 1) / unit.rows) * ((num_panels + unit.panels - 1) / unit.panels);
          // Blocks of at least 64 rows, rounded up to 32.
          const int64_t most = (m + 63) / 64 * num_panels;
          EXPECT_GE(4 * units, 3 * std::min(threads, most));
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
