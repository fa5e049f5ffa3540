// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/grouped_gemm.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "kernels/gemm/dense_elements.h"
#include "tests/kernels/gemm/gemm_test_case.h"

namespace nibble::kernels {
namespace {

using testing::Random;

// What a packed weight may be; the two last have scales of both signs, with and without zero
// points.
enum class Kind { kF32, kBf16, kF16, kW8A8, kW4A16, kFolded, kFloat, kInteger, kZeroPoints };
constexpr Kind kAllKinds[] = {Kind::kF32,   Kind::kBf16,    Kind::kF16,
                              Kind::kW8A8,  Kind::kW4A16,   Kind::kFolded,
                              Kind::kFloat, Kind::kInteger, Kind::kZeroPoints};

std::unique_ptr<PackedWeight> Checked(absl::StatusOr<std::unique_ptr<PackedWeight>> weight) {
  EXPECT_TRUE(weight.ok()) << weight.status();
  return std::move(*weight);
}

Int4Weight RandomInt4(Random* random, Kind kind, int64_t n, int64_t k, int64_t group) {
  Int4Weight weight = {.n = n, .k = k, .group_size = group};
  weight.codes.resize(static_cast<size_t>(n * weight.row_bytes()));
  for (uint8_t& byte : weight.codes) byte = static_cast<uint8_t>(random->Bits());
  for (int64_t i = 0; i < n * weight.num_groups(); ++i) {
    float scale = 0.001F * static_cast<float>(random->Int(1, 16));
    if (kind != Kind::kFolded && random->Int(0, 1) == 1) scale = -scale;
    weight.scales.push_back(scale);
    if (kind == Kind::kZeroPoints || kind == Kind::kW4A16) {
      weight.zero_points.push_back(static_cast<uint8_t>(random->Int(0, 15)));
    }
  }
  return weight;
}

std::unique_ptr<PackedWeight> MakeWeight(Random* random, Kind kind, int64_t n, int64_t k,
                                         int64_t group, Isa isa, ThreadPool* pool) {
  switch (kind) {
    case Kind::kF32:
    case Kind::kBf16:
    case Kind::kF16: {
      const DType storage = kind == Kind::kF32    ? DType::kF32
                            : kind == Kind::kBf16 ? DType::kBf16
                                                  : DType::kF16;
      const std::vector<float> values = random->Normals(n * k);
      return Checked(PackDense(values.data(), DType::kF32, n, k, storage, isa, pool));
    }
    case Kind::kW8A8: {
      Int8Weight weight = {.n = n, .k = k, .codes = {}, .scales = {}};
      for (int64_t i = 0; i < n * k; ++i) {
        weight.codes.push_back(static_cast<int8_t>(random->Int(-128, 127)));
      }
      for (int64_t i = 0; i < n; ++i) weight.scales.push_back(random->Uniform(0.001F, 0.01F));
      return Checked(PackInt8(weight, isa, pool));
    }
    case Kind::kW4A16:
      return Checked(PackInt4Float(RandomInt4(random, kind, n, k, group), isa, pool));
    case Kind::kFolded:
    case Kind::kFloat:
    case Kind::kInteger:
    case Kind::kZeroPoints:
      break;
  }
  const ScaleForm form = kind == Kind::kFolded  ? ScaleForm::kFolded
                         : kind == Kind::kFloat ? ScaleForm::kFloat
                                                : ScaleForm::kInteger;
  return Checked(PackInt4(RandomInt4(random, kind, n, k, group), form, isa, pool));
}

// Rows of both forms.
struct Tokens {
  int64_t a_stride;
  std::vector<float> a;
  Int8Activations a8;
  Tokens(Random* random, int64_t rows, int64_t k)
      : a_stride(k + 5),
        a(PaddedNormals(random, rows, k, a_stride)),
        a8(RandomActivations(random, rows, 0, k)) {}
  QuantizedRows quantized() {
    return {a8.values.data(), a8.scales.data(), a8.sums.data(), a8.stride};
  }
};

Output RunAlone(const PackedWeight& weight, Tokens* tokens, ThreadPool* pool) {
  const auto rows = static_cast<int64_t>(tokens->a8.sums.size());
  Output d(rows, weight.desc().n, weight.desc().n);
  kernels::Run(weight,
               {.m = rows,
                .a = tokens->a.data(),
                .a_stride = tokens->a_stride,
                .a8 = tokens->quantized(),
                .d = d.data(),
                .d_stride = d.stride()},
               pool);
  return d;
}

// Runs `weights` over groups of so many rows and compares every element of D with that of Run, or,
// where no weight reaches, with what was there before.
void ExpectBitsOfRun(const std::vector<GroupWeight>& weights,
                     const std::vector<int64_t>& rows_of_group, const std::vector<int32_t>* a_rows,
                     int64_t columns, Tokens* tokens, ThreadPool* pool) {
  std::vector<int32_t> offsets = {0};
  for (const int64_t rows : rows_of_group) {
    offsets.push_back(offsets.back() + static_cast<int32_t>(rows));
  }
  Output d(offsets.back(), columns, columns + 5);
  Output expected = d;
  for (const GroupWeight& w : weights) {
    const auto group = static_cast<size_t>(w.group);
    if (offsets[group] == offsets[group + 1]) continue;
    const Output alone = RunAlone(*w.weight, tokens, pool);
    for (int32_t i = offsets[group]; i < offsets[group + 1]; ++i) {
      const int64_t row = a_rows == nullptr ? i : (*a_rows)[static_cast<size_t>(i)];
      for (int64_t n = 0; n < w.weight->desc().n; ++n) {
        expected.data()[i * expected.stride() + w.column + n] = alone.at(row, n);
      }
    }
  }
  RunGrouped(weights,
             {.num_groups = static_cast<int64_t>(rows_of_group.size()),
              .offsets = offsets.data(),
              .a_rows = a_rows == nullptr ? nullptr : a_rows->data(),
              .a = tokens->a.data(),
              .a_stride = tokens->a_stride,
              .a8 = tokens->quantized(),
              .d = d.data(),
              .d_stride = d.stride()},
             pool);
  EXPECT_TRUE(d.CanariesIntact());
  EXPECT_TRUE(SameBits(d, offsets.back(), columns, expected));
}

std::vector<int32_t> RandomRows(Random* random, int64_t count, int64_t num_tokens) {
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back(static_cast<int32_t>(random->Int(0, num_tokens - 1)));
  }
  return rows;
}

// Rows of each group: one, none in some or all, all in one, odd numbers, hundreds.
const std::vector<int64_t> kGroups[] = {
    {1}, {0, 0, 0}, {0, 1, 0}, {0, 13, 0}, {1, 1, 0, 1, 1}, {5, 0, 13, 2, 1, 25}, {0, 9, 8, 201},
};
struct Shape {
  int64_t n, k, group;
};
constexpr Shape kShapes[] = {{1, 1, 1}, {33, 130, 64}, {70, 128, 128}, {40, 56, 7}, {17, 300, 128}};

class GroupedGemmTest : public ::testing::TestWithParam<Isa> {};

TEST_P(GroupedGemmTest, RowsHaveTheBitsOfRun) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool one(1);
  ThreadPool three(3);
  Random random(1);
  for (const Kind kind : kAllKinds) {
    for (const Shape& s : kShapes) {
      for (const std::vector<int64_t>& groups : kGroups) {
        const int64_t rows = std::accumulate(groups.begin(), groups.end(), int64_t{0});
        SCOPED_TRACE(fmt::format("kind={} n={} k={} group={} groups={} rows={}",
                                 static_cast<int>(kind), s.n, s.k, s.group, groups.size(), rows));
        ThreadPool* pool = rows % 2 == 0 ? &three : &one;
        std::vector<std::unique_ptr<PackedWeight>> packed;
        std::vector<GroupWeight> weights;
        for (size_t g = 0; g < groups.size(); ++g) {
          packed.push_back(MakeWeight(&random, kind, s.n, s.k, s.group, GetParam(), &three));
          weights.push_back({packed.back().get(), static_cast<int32_t>(g), 0});
        }
        Tokens own(&random, std::max<int64_t>(1, rows), s.k);
        ExpectBitsOfRun(weights, groups, nullptr, s.n, &own, pool);
        // Fewer tokens than rows: some are read by several.
        const int64_t num_tokens = rows / 2 + 1;
        Tokens shared(&random, num_tokens, s.k);
        const std::vector<int32_t> a_rows = RandomRows(&random, rows, num_tokens);
        ExpectBitsOfRun(weights, groups, &a_rows, s.n, &shared, pool);
      }
    }
  }
}

// Groups whose parts were quantized in different ways, at their own columns of D with gaps between,
// in either order of the list.
TEST_P(GroupedGemmTest, FormatsMixWithinAGroup) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(2);
  constexpr int64_t kK = 136;
  const std::vector<int64_t> groups = {3, 0, 14, 1, 60};
  const std::vector<int32_t> a_rows = RandomRows(&random, 78, 31);
  Tokens tokens(&random, 31, kK);
  std::vector<std::unique_ptr<PackedWeight>> packed;
  std::vector<GroupWeight> by_group;
  int64_t columns = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    int64_t column = static_cast<int64_t>(g);
    for (size_t i = 0; i < 6; ++i) {
      const Kind kind = kAllKinds[(g + i) % std::size(kAllKinds)];
      const int64_t n = 10 + 7 * static_cast<int64_t>(i);
      packed.push_back(MakeWeight(&random, kind, n, kK, 32, GetParam(), &pool));
      by_group.push_back({packed.back().get(), static_cast<int32_t>(g), column});
      column += n + static_cast<int64_t>(i % 3);
    }
    columns = std::max(columns, column);
  }
  ExpectBitsOfRun(by_group, groups, &a_rows, columns, &tokens, &pool);
  std::vector<GroupWeight> by_part;
  for (size_t i = 0; i < 6; ++i) {
    for (size_t g = 0; g < groups.size(); ++g) by_part.push_back(by_group[g * 6 + i]);
  }
  ExpectBitsOfRun(by_part, groups, &a_rows, columns, &tokens, &pool);
}

// Two weights of the same rows share them in tiles; the same rows as other values do not.
TEST_P(GroupedGemmTest, GateAndUpReadTheSameRows) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(3);
  constexpr int64_t kN = 37;
  constexpr int64_t kK = 192;
  const std::vector<int64_t> groups = {30, 1, 0, 7};
  const std::vector<int32_t> a_rows = RandomRows(&random, 38, 12);
  Tokens tokens(&random, 12, kK);
  for (const auto& [gate, up] : {std::pair{Kind::kFolded, Kind::kFolded},
                                 {Kind::kZeroPoints, Kind::kInteger},
                                 {Kind::kW8A8, Kind::kFloat},
                                 {Kind::kBf16, Kind::kBf16}}) {
    std::vector<std::unique_ptr<PackedWeight>> packed;
    std::vector<GroupWeight> weights;
    for (int32_t g = 0; g < 4; ++g) {
      packed.push_back(MakeWeight(&random, gate, kN, kK, 64, GetParam(), &pool));
      weights.push_back({packed.back().get(), g, 0});
      packed.push_back(MakeWeight(&random, up, kN, kK, 64, GetParam(), &pool));
      weights.push_back({packed.back().get(), g, kN});
    }
    ExpectBitsOfRun(weights, groups, &a_rows, 2 * kN, &tokens, &pool);
  }
}

// More rows than are arranged at once, in groups and within one, and more groups than one parallel
// loop takes.
TEST_P(GroupedGemmTest, LongInputsComeInPieces) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(4);
  constexpr int64_t kK = 20000;
  const std::vector<int64_t> groups = {100, 0, 60, 130, 50};
  const std::vector<int32_t> a_rows = RandomRows(&random, 340, 15);
  Tokens tokens(&random, 15, kK);
  for (const Kind kind : {Kind::kFolded, Kind::kW8A8}) {
    const auto weight = MakeWeight(&random, kind, 7, kK, 128, GetParam(), &pool);
    std::vector<GroupWeight> weights;
    for (int32_t g = 0; g < 5; ++g) weights.push_back({weight.get(), g, 0});
    ExpectBitsOfRun(weights, groups, &a_rows, 7, &tokens, &pool);
  }
}

TEST_P(GroupedGemmTest, ManyGroups) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(5);
  constexpr int64_t kK = 24;
  constexpr int32_t kNumGroups = 1100;
  Tokens tokens(&random, 9, kK);
  std::vector<std::unique_ptr<PackedWeight>> packed;
  for (int i = 0; i < 3; ++i) {
    packed.push_back(MakeWeight(&random, kAllKinds[4 + i], 5, kK, 24, GetParam(), &pool));
  }
  std::vector<GroupWeight> weights;
  std::vector<int64_t> groups;
  for (int32_t g = 0; g < kNumGroups; ++g) {
    groups.push_back(g % 7 == 0 ? 0 : 1 + g % 3);
    weights.push_back({packed[static_cast<size_t>(g % 3)].get(), g, 0});
  }
  const int64_t rows = std::accumulate(groups.begin(), groups.end(), int64_t{0});
  const std::vector<int32_t> a_rows = RandomRows(&random, rows, 9);
  ExpectBitsOfRun(weights, groups, &a_rows, 5, &tokens, &pool);
}

TEST_P(GroupedGemmTest, WeightsWithoutRowsAreNotRead) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(GetParam());
  ThreadPool pool(2);
  Random random(6);
  Tokens tokens(&random, 3, 40);
  const auto weight = MakeWeight(&random, Kind::kFolded, 9, 40, 40, GetParam(), &pool);
  ExpectBitsOfRun({{nullptr, 0, 0}, {weight.get(), 1, 2}, {nullptr, 2, 0}}, {0, 3, 0}, nullptr, 11,
                  &tokens, &pool);
  ExpectBitsOfRun({{nullptr, 0, 0}}, {0}, nullptr, 11, &tokens, &pool);
  ExpectBitsOfRun({}, {0, 2}, nullptr, 11, &tokens, &pool);
}

INSTANTIATE_TEST_SUITE_P(AllVariants, GroupedGemmTest, ::testing::ValuesIn(kAllIsas), IsaName);

// Experts with many rows are multiplied on tiles, those with few are not.
TEST(GroupedGemmAmx, FewRowsAreNotOnTiles) {
  NIBBLE_SKIP_UNLESS_HOST_RUNS(Isa::kAmx);
  if (!amx::AmxIsEmulated()) GTEST_SKIP() << "instructions are counted by the emulator only";
  ThreadPool pool(2);
  Random random(7);
  Tokens tokens(&random, 17, 128);
  for (const Kind kind : {Kind::kFolded, Kind::kInteger, Kind::kFloat}) {
    const auto weight = MakeWeight(&random, kind, 40, 128, 64, Isa::kAmx, &pool);
    const auto products = [&](const std::vector<int32_t>& offsets) {
      Output d(17, 40, 40);
      const int64_t before = amx::NumEmulatedProducts();
      const std::vector<GroupWeight> weights = {{weight.get(), 0, 0}, {weight.get(), 1, 0}};
      RunGrouped(weights,
                 {.num_groups = 2,
                  .offsets = offsets.data(),
                  .a8 = tokens.quantized(),
                  .d = d.data(),
                  .d_stride = d.stride()},
                 &pool);
      return amx::NumEmulatedProducts() - before;
    };
    EXPECT_EQ(products({0, 8, 16}), 0);
    const int64_t nine = products({0, 8, 17});
    EXPECT_GT(nine, 0);
    EXPECT_EQ(products({0, 9, 9}), nine);
  }
}

}  // namespace
}  // namespace nibble::kernels
