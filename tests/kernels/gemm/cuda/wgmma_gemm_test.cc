// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The wgmma kernel against the CPU's reference: every tile, every form.
#include "kernels/gemm/cuda/wgmma_gemm.h"

#include <string>
#include <vector>

#include "fmt/format.h"

#include "kernels/gemm/cuda/wgmma_schedule.h"
#include "tests/kernels/gemm/cuda/gemm_rig.h"

namespace nibble::kernels::cuda {
namespace {

constexpr WeightKind kKinds[] = {
    WeightKind::kFolded128,      WeightKind::kFolded32,   WeightKind::kFolded96,
    WeightKind::kFoldedChannel,  WeightKind::kInteger128, WeightKind::kInteger64Zeros,
    WeightKind::kInteger32Mixed, WeightKind::kFloat128,   WeightKind::kFloat64Zeros,
    WeightKind::kFloat32,        WeightKind::kInt8};

class WgmmaTest : public ::testing::TestWithParam<WeightKind> {
 protected:
  void SetUp() override {
    NIBBLE_SKIP_WITHOUT_DEVICE();
    rig_ = std::make_unique<Rig>();
    if (rig_->caps().sm != 90) {
      GTEST_SKIP() << "the device has compute capability " << rig_->caps().sm / 10.0
                   << ", wgmma is of 9.0";
    }
  }

  bool HasShortGroups(const GemmDesc& desc) const {
    return desc.format == WeightFormat::kW4A8 && MakeWeightLayout(desc).group_shift < 7;
  }

  std::vector<float> Expected(const TestWeight& weight, Activations* x,
                              const std::vector<float>& bias) {
    const int64_t n = weight.desc.n;
    std::vector<float> d(static_cast<size_t>(x->rows * n));
    kernels::Run(*weight.reference,
                 {.m = x->rows,
                  .a8 = x->Quantized(false),
                  .bias = bias.empty() ? nullptr : bias.data(),
                  .d = d.data(),
                  .d_stride = n},
                 Pool());
    return d;
  }

  std::vector<float> Run(const TestWeight& weight, Activations* x, const std::vector<float>& bias,
                         DType dtype, const GemmPlan& plan) {
    const auto device_bias = rig_->Upload(bias);
    DeviceOutput d(rig_.get(), x->rows, weight.desc.n, dtype);
    const absl::Status status = RunPlanned(
        *weight.device,
        {.m = x->rows, .a8 = x->Quantized(true), .bias = device_bias.data(), .d = d.Matrix()}, plan,
        rig_->Context(plan.workspace_bytes), rig_->stream());
    EXPECT_TRUE(status.ok()) << status;
    return d.Read(rig_.get());
  }

  static std::vector<int32_t> FirstRows(int64_t rows) {
    std::vector<int32_t> result;
    for (int64_t i = 0; i < rows; ++i) result.push_back(static_cast<int32_t>(i));
    return result;
  }

  testing::Random random_{11};
  std::unique_ptr<Rig> rig_;
};

TEST_P(WgmmaTest, EveryTileIsTheReference) {
  struct Shape {
    int64_t m, n, k;
  };
  // One tile that nothing fills; two of channels, of which the last one has 3; several stages.
  for (const Shape& s : {Shape{3, 40, 320}, Shape{19, 131, 200}}) {
    const TestWeight weight = MakeWeight(&random_, GetParam(), s.n, s.k);
    Activations x = MakeActivations(rig_.get(), &random_, weight.desc, s.m);
    const std::vector<float> bias = s.m == 3 ? std::vector<float>{} : random_.Normals(s.n);
    const std::vector<float> expected = Expected(weight, &x, bias);
    DType dtype = DType::kF32;
    for (const int tokens : kWgmmaTokens) {
      if (!WgmmaTakes(FormOf(weight.desc), false, HasShortGroups(weight.desc), tokens)) continue;
      const GemmPlan plan = PlanWgmmaTile(weight.desc, s.m, tokens, 1, rig_->caps());
      EXPECT_TRUE(
          Matches(weight, x, FirstRows(s.m), Run(weight, &x, bias, dtype, plan), expected, dtype))
          << ToString(weight.desc) << " m=" << s.m << " tile " << tokens << " to "
          << ToString(dtype);
      dtype = dtype == DType::kF32 ? DType::kBf16 : DType::kF32;
    }
  }
}

TEST_P(WgmmaTest, BlocksTakeTilesInTurnAndKMayBeCut) {
  // The ring goes round more than once, with an odd and an even number of stages before a tile
  // ends.
  const int64_t m = 37;
  const TestWeight weight = MakeWeight(&random_, GetParam(), 260, 128 * 9 - 5);
  Activations x = MakeActivations(rig_.get(), &random_, weight.desc, m);
  const std::vector<float> bias = random_.Normals(weight.desc.n);
  const std::vector<float> expected = Expected(weight, &x, bias);
  const std::vector<float> whole =
      Run(weight, &x, bias, DType::kF32, PlanWgmmaTile(weight.desc, m, 16, 1, rig_->caps()));
  EXPECT_TRUE(Matches(weight, x, FirstRows(m), whole, expected, DType::kF32));
  // Outputs leave a tile 32 tokens at a time.
  const GemmPlan wide = PlanWgmmaTile(weight.desc, m, 64, 1, rig_->caps());
  if (WgmmaTakes(FormOf(weight.desc), false, HasShortGroups(weight.desc), wide.tile_n)) {
    EXPECT_EQ(Run(weight, &x, bias, DType::kF32, wide), whole) << "in a tile of 64 tokens";
  }
  const bool exact = SumsAreExact(FormOf(weight.desc));
  const std::vector<int> splits =
      exact ? std::vector<int>{2, 3, 8} : std::vector<int>{KParts(weight.desc)};
  for (const int split : splits) {
    GemmPlan plan = PlanWgmmaTile(weight.desc, m, 16, split, rig_->caps());
    plan.blocks = 2;
    // The bits do not depend on it.
    EXPECT_EQ(Run(weight, &x, bias, DType::kF32, plan), whole) << "in " << split << " pieces";
  }
}

TEST_P(WgmmaTest, FloatSumsAreThoseOfTheOtherKernels) {
  const TestWeight weight = MakeWeight(&random_, GetParam(), 48, 128 * 7);
  Activations x = MakeActivations(rig_.get(), &random_, weight.desc, 9);
  const std::vector<float> others = Run(weight, &x, {}, DType::kF32, PlanSkinny(weight.desc, 16));
  const GemmPlan plan = PlanWgmmaTile(weight.desc, 9, 16, 1, rig_->caps());
  EXPECT_EQ(Run(weight, &x, {}, DType::kF32, plan), others);
}

// Rows of groups, group by group, in `actual` and `expected`.
void ExpectGroups(const std::vector<TestWeight>& weights, const Activations& x,
                  const std::vector<int32_t>& offsets, const std::vector<int32_t>& a_rows,
                  const std::vector<float>& actual, const std::vector<float>& expected,
                  const std::string& what) {
  for (size_t g = 0; g < weights.size(); ++g) {
    const int64_t n = weights[g].desc.n;
    const int64_t begin = offsets[g];
    const int64_t end = offsets[g + 1];
    const auto slice = [&](const std::vector<float>& all) {
      return std::vector<float>(all.begin() + begin * n, all.begin() + end * n);
    };
    EXPECT_TRUE(Matches(weights[g], x, {a_rows.begin() + begin, a_rows.begin() + end},
                        slice(actual), slice(expected), DType::kF32))
        << "group " << g << " " << what;
  }
}

// Rows of A gathered or not; groups without rows, with one, and with more than a tile.
TEST_P(WgmmaTest, GroupsAreTheReference) {
  constexpr int64_t kN = 72;
  constexpr int64_t kK = 650;
  constexpr int64_t kTokens = 13;
  const std::vector<int32_t> offsets = {0, 0, 1, 20, 20, 23};
  const int64_t num_groups = std::ssize(offsets) - 1;
  std::vector<TestWeight> weights;
  std::vector<const DeviceWeight*> devices;
  std::vector<GroupWeight> references;
  for (int64_t g = 0; g < num_groups; ++g) {
    weights.push_back(MakeWeight(&random_, GetParam(), kN, kK));
    devices.push_back(weights.back().device.get());
    references.push_back({weights.back().reference.get(), static_cast<int32_t>(g), 0});
  }
  const GroupedWeights grouped = GroupedWeights::Create(devices).value();
  const int64_t rows = offsets.back();
  const auto device_offsets = rig_->Upload(offsets);
  for (const bool gathers : {false, true}) {
    Activations x = MakeActivations(rig_.get(), &random_, grouped.desc(), gathers ? kTokens : rows);
    std::vector<int32_t> a_rows = FirstRows(rows);
    if (gathers) {
      for (int32_t& row : a_rows) row = static_cast<int32_t>(random_.Int(0, kTokens - 1));
    }
    const auto device_a_rows = rig_->Upload(a_rows);
    std::vector<float> expected(static_cast<size_t>(rows * kN));
    kernels::RunGrouped(references,
                        {.num_groups = num_groups,
                         .offsets = offsets.data(),
                         .a_rows = a_rows.data(),
                         .a8 = x.Quantized(false),
                         .d = expected.data(),
                         .d_stride = kN},
                        Pool());
    for (const int tokens : kWgmmaTokens) {
      const GemmDesc& desc = grouped.desc();
      if (!WgmmaTakes(FormOf(desc), gathers, HasShortGroups(desc), tokens) || tokens > 64) continue;
      // More rows than there are: the rest is not touched.
      DeviceOutput d(rig_.get(), rows, kN, DType::kF32);
      GemmPlan plan = PlanWgmmaTile(desc, rows, tokens, 1, rig_->caps());
      plan.blocks = 2;
      const absl::Status status =
          RunGroupedPlanned(grouped,
                            {.max_rows = rows + (gathers ? 40 : 0),
                             .offsets = device_offsets.data(),
                             .a_rows = gathers ? device_a_rows.data() : nullptr,
                             .a8 = x.Quantized(true),
                             .d = d.Matrix()},
                            plan, rig_->Context(0), rig_->stream());
      ASSERT_TRUE(status.ok()) << status;
      ExpectGroups(weights, x, offsets, a_rows, d.Read(rig_.get()), expected,
                   fmt::format("tile {}{}", tokens, gathers ? " gathered" : ""));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, WgmmaTest, ::testing::ValuesIn(kKinds), KindName);

}  // namespace
}  // namespace nibble::kernels::cuda
