// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is particular to AMX: how work is cut, and which instructions do it. That its variants
// compute what they should is in the tests of all variants, which run them too.

#include "kernels/gemm/amx_gemm.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "base/amx_probe.h"
#include "base/float16.h"
#include "kernels/gemm/gemm_variant.h"
#include "kernels/gemm/integer_scales.h"
#include "tests/kernels/gemm/amx_emulator.h"
#include "tests/kernels/gemm/gemm_test_case.h"

namespace nibble::kernels {
namespace {

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

// The bits of tiles are those of vpdpbusd: only the instructions tell that tiles did the work.
TEST(AmxGemm, MoreThanAFewRowsRunOnTiles) {
  if (!amx::AmxIsEmulated()) GTEST_SKIP() << "instructions are counted by the emulator only";
  ThreadPool pool(2);
  testing::Random random(4);
  constexpr int64_t kN = 40;
  constexpr int64_t kK = 256;
  Int8Activations x = RandomActivations(&random, 9, kN, kK);
  Int4Weight plain = {.n = kN, .k = kK, .group_size = 64};
  plain.codes.assign(static_cast<size_t>(kN * plain.row_bytes()), 0x3a);
  plain.scales.assign(static_cast<size_t>(kN * plain.num_groups()), 0.5F);
  for (const ScaleForm form : {ScaleForm::kFolded, ScaleForm::kInteger, ScaleForm::kFloat}) {
    auto weight = PackInt4(plain, form, Isa::kAmx, &pool);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const int64_t before = amx::NumEmulatedProducts();
    RunInt8(**weight, &x, 0, 8, &pool);
    EXPECT_EQ(amx::NumEmulatedProducts(), before) << (*weight)->variant_name();
    RunInt8(**weight, &x, 0, 9, &pool);
    EXPECT_GT(amx::NumEmulatedProducts(), before) << (*weight)->variant_name();
  }
}

// Activations of long inputs are arranged in chunks of whole blocks, 16 MiB or one block.
TEST(AmxGemm, ChunksBoundWhatIsArranged) {
  for (const int64_t m : {1, 32, 33, 511, 512, 513, 1025, 5000, 100000}) {
    for (const int64_t row_bytes : {64, 4096, 28672, 32768, 32832, 264192}) {
      const int64_t rows = AmxChunkRows(m, row_bytes);
      EXPECT_EQ(rows % 32, 0);
      EXPECT_GE(rows, std::min<int64_t>(m, 256));  // halves of what is a little more than a block
      EXPECT_LE(rows * row_bytes, std::max<int64_t>(int64_t{16} << 20, 512 * row_bytes));
      // No short last chunk.
      const int64_t chunks = (m + rows - 1) / rows;
      EXPECT_GT(m - (chunks - 1) * rows, rows - 32 * chunks) << m << " " << rows;
    }
  }
}

TEST(AmxGemm, RowsOfChunksAreTheirOwn) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(Isa::kAmx);
  ThreadPool pool(2);
  testing::Random random(5);
  constexpr int64_t kM = 515;
  constexpr int64_t kN = 3;
  constexpr int64_t kK = 32800;
  ASSERT_LT(AmxChunkRows(kM, kK), kM);
  Int8Activations x = RandomActivations(&random, kM, kN, kK);
  Int8Weight plain = {.n = kN, .k = kK, .codes = {}, .scales = random.Normals(kN)};
  plain.codes.resize(static_cast<size_t>(kN * kK));
  for (int8_t& code : plain.codes) code = static_cast<int8_t>(random.Int(-128, 127));
  auto weight = PackInt8(plain, Isa::kAmx, &pool);
  auto reference = PackInt8(plain, Isa::kRef, &pool);
  ASSERT_TRUE(weight.ok() && reference.ok()) << weight.status();
  EXPECT_TRUE(SameBits(RunInt8(**weight, &x, 0, kM, &pool), kM, kN,
                       RunInt8(**reference, &x, 0, kM, &pool)));
}

// (u - z) * S at both ends of its 13 bits, adding up to nearly 2^31.
TEST(AmxGemm, ExtremeSumsWithZeroPointsAreExact) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(Isa::kAmx);
  ThreadPool pool(2);
  constexpr int64_t kN = 4;
  constexpr int64_t kGroup = 128;
  constexpr int64_t kGroups = 34;
  constexpr int64_t kK = kGroups * kGroup;  // 127 * 255 * 15 * k = 0.98 * 2^31
  // Codes 15 of zero point 0 and codes 0 of zero point 15; channels 2 and 3 have S = -127 in their
  // first group, which leaves 127 to the others.
  Int4Weight plain = {.n = kN, .k = kK, .group_size = kGroup};
  for (const int channel : {0, 1, 2, 3}) {
    const bool high = channel % 2 == 0;
    plain.codes.insert(plain.codes.end(), static_cast<size_t>(plain.row_bytes()),
                       high ? 0xff : 0x00);
    plain.zero_points.insert(plain.zero_points.end(), kGroups, high ? 0 : 15);
    plain.scales.insert(plain.scales.end(), kGroups, 1.0F);
    if (channel >= 2) plain.scales[static_cast<size_t>(channel * kGroups)] = -1.0F;
  }
  const auto scales = FindIntegerScales(plain);
  ASSERT_TRUE(scales.ok()) << scales.status();
  EXPECT_EQ(scales->integers[0], 255);
  EXPECT_EQ(scales->integers[2 * kGroups], -127);
  auto weight = PackInt4(plain, ScaleForm::kInteger, Isa::kAmx, &pool);
  auto reference = PackInt4(plain, ScaleForm::kInteger, Isa::kRef, &pool);
  ASSERT_TRUE(weight.ok() && reference.ok()) << weight.status();
  for (const int activation : {-127, 127}) {
    for (const int64_t m : {1, 9, 40}) {
      Int8Activations x = ConstantActivations(m, kN, kK, activation);
      EXPECT_TRUE(SameBits(RunInt8(**weight, &x, 0, m, &pool), m, kN,
                           RunInt8(**reference, &x, 0, m, &pool)))
          << "m=" << m << " a=" << activation;
    }
  }
}

// What base does before it claims AMX.
TEST(AmxGemm, ProbeNoticesTilesThatAreLost) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(Isa::kAmx);
  EXPECT_TRUE(AmxTilesSurviveSwitches());
  if (!amx::AmxIsEmulated()) return;
  amx::LoseTilesBeforeStores(true);
  EXPECT_FALSE(AmxTilesSurviveSwitches());
  amx::LoseTilesBeforeStores(false);
}

// Large products are cut into blocks of several panels and of 512 rows; a few of the same rows are
// one block of one panel each. (That those are right, the tests of all variants say.)
constexpr int64_t kLargeN = 70;
constexpr int64_t kLargeK = 4200;

void ExpectRowsOfSmallBlocks(const PackedWeight& weight, Int8Activations* x, int64_t m) {
  ThreadPool pool(1);
  const AmxUnits unit = ChooseAmxUnits(m, kLargeK, (kLargeN + 31) / 32, 1);
  ASSERT_GT(unit.panels, 1);
  const Output all = RunInt8(weight, x, 0, m, &pool);
  for (const int64_t first : {int64_t{0}, m - 20}) {
    EXPECT_TRUE(SameBits(RunInt8(weight, x, first, 20, &pool), 20, kLargeN, all, first))
        << weight.variant_name() << ", rows from " << first;
  }
}

TEST(AmxGemm, Int4RowsInLargeBlocksEqualRowsInSmallOnes) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(Isa::kAmx);
  ThreadPool pool(2);
  testing::Random random(1);
  constexpr int64_t kM = 140;
  Int8Activations x = RandomActivations(&random, kM, kLargeN, kLargeK);
  Int4Weight plain = {.n = kLargeN, .k = kLargeK, .group_size = 100};
  plain.codes.resize(static_cast<size_t>(kLargeN * plain.row_bytes()));
  for (uint8_t& byte : plain.codes) byte = static_cast<uint8_t>(random.Bits());
  for (int64_t i = 0; i < kLargeN * plain.num_groups(); ++i) {
    plain.scales.push_back(0.25F * static_cast<float>(random.Int(1, 16)));
  }
  for (const bool has_zeros : {false, true}) {
    if (has_zeros) {
      for (size_t i = 0; i < plain.scales.size(); ++i) {
        plain.zero_points.push_back(static_cast<uint8_t>(random.Int(0, 15)));
      }
    }
    for (const ScaleForm form : {ScaleForm::kFolded, ScaleForm::kInteger, ScaleForm::kFloat}) {
      if (has_zeros && form == ScaleForm::kFolded) continue;
      auto weight = PackInt4(plain, form, Isa::kAmx, &pool);
      ASSERT_TRUE(weight.ok()) << weight.status();
      ExpectRowsOfSmallBlocks(**weight, &x, kM);
    }
  }
}

TEST(AmxGemm, Int8RowsInLargeBlocksEqualRowsInSmallOnes) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(Isa::kAmx);
  ThreadPool pool(2);
  testing::Random random(2);
  constexpr int64_t kM = 140;
  Int8Activations x = RandomActivations(&random, kM, kLargeN, kLargeK);
  Int8Weight plain = {.n = kLargeN, .k = kLargeK, .codes = {}, .scales = random.Normals(kLargeN)};
  plain.codes.resize(static_cast<size_t>(kLargeN * kLargeK));
  for (int8_t& code : plain.codes) code = static_cast<int8_t>(random.Int(-128, 127));
  auto weight = PackInt8(plain, Isa::kAmx, &pool);
  ASSERT_TRUE(weight.ok()) << weight.status();
  ExpectRowsOfSmallBlocks(**weight, &x, kM);
}

TEST(AmxGemm, DenseRowsInLargeBlocksEqualRowsInSmallOnes) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(Isa::kAmx);
  ThreadPool pool(1);
  testing::Random random(3);
  constexpr int64_t kM = 530;  // two blocks of rows
  constexpr int64_t kK = 1100;
  const std::vector<float> plain = random.Normals(kLargeN * kK);
  const std::vector<float> a = random.Normals(kM * kK);
  ASSERT_GT(ChooseAmxUnits(kM, 2 * kK, (kLargeN + 31) / 32, 1).panels, 1);
  auto weight = PackDense(plain.data(), DType::kF32, kLargeN, kK, DType::kBf16, Isa::kAmx, &pool);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const auto run = [&](int64_t first, int64_t m) {
    Output d(m, kLargeN, kLargeN + 3);
    const GemmArgs args = {
        .m = m, .a = a.data() + first * kK, .a_stride = kK, .d = d.data(), .d_stride = d.stride()};
    kernels::Run(**weight, args, &pool);
    EXPECT_TRUE(d.CanariesIntact());
    return d;
  };
  const Output all = run(0, kM);
  for (const int64_t first : {int64_t{0}, int64_t{255}, kM - 1}) {
    EXPECT_TRUE(SameBits(run(first, 1), 1, kLargeN, all, first)) << "row " << first;
  }
}

// Activations are rounded to nearest even; NaN and infinity stay what they are.
TEST(AmxGemm, DenseRoundsActivations) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(Isa::kAmx);
  ThreadPool pool(1);
  const float one = 1.0F;
  auto weight = PackDense(&one, DType::kF32, 1, 1, DType::kBf16, Isa::kAmx, &pool);
  ASSERT_TRUE(weight.ok()) << weight.status();
  const float inf = std::numeric_limits<float>::infinity();
  const float values[] = {1.0F,  1.0F + 0x1p-8F, 1.0F + 0x3p-8F, 1.0F + 0x1.02p-8F,
                          -3.3F, 0x1p-9F,        3.4e38F,        inf,
                          -inf,  -0x1.fep-3F};
  const auto count = static_cast<int64_t>(std::size(values));
  std::vector<float> d(std::size(values));
  const GemmArgs args = {.m = count, .a = values, .a_stride = 1, .d = d.data(), .d_stride = 1};
  kernels::Run(**weight, args, &pool);
  for (size_t i = 0; i < d.size(); ++i) EXPECT_EQ(d[i], ToFloat(ToBFloat16(values[i]))) << i;
  for (const uint32_t bits : {0x7fc00000U, 0x7f800001U, 0xffffffffU}) {
    const auto nan = std::bit_cast<float>(bits);
    kernels::Run(**weight, {.m = 1, .a = &nan, .a_stride = 1, .d = d.data(), .d_stride = 1}, &pool);
    EXPECT_TRUE(std::isnan(d[0])) << std::hex << bits;
  }
}

}  // namespace
}  // namespace nibble::kernels
