// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "tests/kernels/gemm/cuda/gemm_rig.h"

namespace nibble::kernels::cuda {
namespace {

class GroupedGemmTest : public ::testing::TestWithParam<WeightKind> {
 protected:
  void SetUp() override {
    NIBBLE_SKIP_WITHOUT_DEVICE();
    rig_ = std::make_unique<Rig>();
  }
  std::vector<GemmPlan> Plans(const GemmDesc& desc, int64_t num_groups, int64_t max_rows) {
    std::vector<GemmPlan> plans = {ChooseGrouped(desc, num_groups, max_rows, rig_->caps())};
    if (GetParam() == WeightKind::kF32) return plans;
    for (const int tile_n : {8, 16}) plans.push_back(PlanSkinny(desc, tile_n));
    for (const int tile_n : {32, 64}) plans.push_back(PlanTiled(desc, tile_n, 1, max_rows));
    return plans;
  }
  // `rows` of a product of their own.
  static std::vector<float> Reference(const TestWeight& weight, Activations* x, int64_t num_tokens,
                                      int64_t n, const std::vector<int32_t>& rows) {
    std::vector<float> all(static_cast<size_t>(num_tokens * n));
    kernels::Run(*weight.reference,
                 {.m = num_tokens,
                  .a = x->values.data(),
                  .a_stride = x->stride,
                  .a8 = x->Quantized(false),
                  .d = all.data(),
                  .d_stride = n},
                 Pool());
    std::vector<float> expected;
    for (const int32_t row : rows) {
      expected.insert(expected.end(), all.begin() + row * n, all.begin() + (row + 1) * n);
    }
    return expected;
  }

  testing::Random random_{11};
  std::unique_ptr<Rig> rig_;
};

// By every kernel: the bits of a product without groups, row by row; nothing beyond the last group.
TEST_P(GroupedGemmTest, RowsAreThoseOfTheirGroupsWeights) {
  constexpr int64_t kGroups = 5;
  constexpr int64_t kTokens = 7;
  constexpr int64_t kMaxRows = 48;
  const int64_t n = 88;
  const int64_t k = 272;
  std::vector<TestWeight> weights;
  std::vector<const DeviceWeight*> pointers;
  for (int64_t g = 0; g < kGroups; ++g) {
    weights.push_back(MakeWeight(&random_, GetParam(), n, k));
    pointers.push_back(weights.back().device.get());
  }
  const GroupedWeights grouped = GroupedWeights::Create(pointers).value();
  const GemmDesc& desc = grouped.desc();
  Activations x = MakeActivations(rig_.get(), &random_, desc, kTokens);

  const std::vector<std::vector<int32_t>> kOffsets = {
      {0, 3, 3, 20, 21, 37},   // one group empty, tails of tiles
      {0, 0, 0, 0, 40, 40},    // all rows of one
      {0, 0, 0, 0, 0, 0},      // no rows
      {0, 10, 20, 30, 40, 48}  // as many as there may be
  };
  for (const std::vector<int32_t>& offsets : kOffsets) {
    std::vector<int32_t> a_rows;
    for (int32_t i = 0; i < offsets.back(); ++i) {
      a_rows.push_back(static_cast<int32_t>(random_.Int(0, kTokens - 1)));
    }
    a_rows.resize(kMaxRows);
    const auto device_offsets = rig_->Upload(offsets);
    const auto device_rows = rig_->Upload(a_rows);
    for (const GemmPlan& plan : Plans(desc, kGroups, kMaxRows)) {
      // Rows beyond the groups keep their canaries.
      DeviceOutput d(rig_.get(), offsets.back(), n, DType::kF32);
      const absl::Status status = RunGroupedPlanned(grouped,
                                                    {.max_rows = kMaxRows,
                                                     .offsets = device_offsets.data(),
                                                     .a_rows = device_rows.data(),
                                                     .a = x.Dense(),
                                                     .a8 = x.Quantized(true),
                                                     .d = d.Matrix()},
                                                    plan, rig_->Context(0), rig_->stream());
      ASSERT_TRUE(status.ok()) << status;
      const std::vector<float> actual = d.Read(rig_.get());
      for (size_t g = 0; g < weights.size(); ++g) {
        const std::vector<int32_t> rows(a_rows.begin() + offsets[g],
                                        a_rows.begin() + offsets[g + 1]);
        if (rows.empty()) continue;
        const std::vector<float> expected = Reference(weights[g], &x, kTokens, n, rows);
        const std::vector<float> mine(actual.begin() + offsets[g] * n,
                                      actual.begin() + offsets[g + 1] * n);
        EXPECT_TRUE(Matches(weights[g], x, rows, mine, expected, DType::kF32))
            << "group " << g << " by " << ToString(plan.kernel) << " tile " << plan.tile_n;
      }
    }
  }
}

// Bits of a grouped row are those of Run(), also where sums are rounded; without a_rows, row i of A
// is row i of D.
TEST_P(GroupedGemmTest, BitsAreThoseOfRun) {
  const TestWeight first = MakeWeight(&random_, GetParam(), 48, 1088);
  const TestWeight second = MakeWeight(&random_, GetParam(), 48, 1088);
  const std::vector<const DeviceWeight*> pointers = {first.device.get(), second.device.get()};
  const GroupedWeights grouped = GroupedWeights::Create(pointers).value();
  Activations x = MakeActivations(rig_.get(), &random_, first.desc, 20);
  const auto offsets = rig_->Upload(std::vector<int32_t>{0, 0, 20});
  DeviceOutput d(rig_.get(), 20, 48, DType::kF32);
  absl::Status status = RunGrouped(grouped,
                                   {.max_rows = 20,
                                    .offsets = offsets.data(),
                                    .a = x.Dense(),
                                    .a8 = x.Quantized(true),
                                    .d = d.Matrix()},
                                   rig_->Context(0), rig_->stream());
  ASSERT_TRUE(status.ok()) << status;
  DeviceOutput run(rig_.get(), 1, 48, DType::kF32);
  status = cuda::Run(*second.device,
                     {.m = 1, .a = x.Dense(), .a8 = x.Quantized(true), .d = run.Matrix()},
                     rig_->Context(0), rig_->stream());
  ASSERT_TRUE(status.ok()) << status;
  const std::vector<float> expected = run.Read(rig_.get());
  const std::vector<float> actual = d.Read(rig_.get());
  EXPECT_EQ(std::memcmp(actual.data(), expected.data(), expected.size() * sizeof(float)), 0);
}

// Offsets come from device memory: what is wrong there writes nowhere else.
TEST(GroupedGemmCallTest, OffsetsAreClampedToTheRowsThereAre) {
  NIBBLE_SKIP_WITHOUT_DEVICE();
  Rig rig;
  testing::Random random(12);
  const TestWeight weight = MakeWeight(&random, WeightKind::kFolded128, 64, 128);
  const std::vector<const DeviceWeight*> pointers = {weight.device.get(), weight.device.get()};
  const GroupedWeights grouped = GroupedWeights::Create(pointers).value();
  Activations x = MakeActivations(&rig, &random, weight.desc, 6);
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{-5, 3, 1000000}, std::vector<int32_t>{7, 2, -1}}) {
    const auto device_offsets = rig.Upload(offsets);
    DeviceOutput d(&rig, 6, 64, DType::kF32);
    const absl::Status status = RunGrouped(
        grouped,
        {.max_rows = 6, .offsets = device_offsets.data(), .a8 = x.Quantized(true), .d = d.Matrix()},
        rig.Context(0), rig.stream());
    ASSERT_TRUE(status.ok()) << status;
    d.Read(&rig);  // the canaries
  }
}

TEST(GroupedGemmCallTest, RefusesGroupsThatDiffer) {
  NIBBLE_SKIP_WITHOUT_DEVICE();
  testing::Random random(13);
  const TestWeight a = MakeWeight(&random, WeightKind::kFolded128, 64, 128);
  const TestWeight b = MakeWeight(&random, WeightKind::kFolded128, 48, 128);
  const std::vector<const DeviceWeight*> pointers = {a.device.get(), b.device.get()};
  const absl::Status status = GroupedWeights::Create(pointers).status();
  EXPECT_NE(std::string(status.message()).find("the weight of group 1 is w4a8 folded n=48"),
            std::string::npos)
      << status;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Kinds, GroupedGemmTest, ::testing::ValuesIn(kAllKinds), KindName);

}  // namespace nibble::kernels::cuda
