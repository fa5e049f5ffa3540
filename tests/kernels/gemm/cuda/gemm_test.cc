// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "gmock/gmock.h"

#include "kernels/gemm/cuda/cublaslt.h"
#include "kernels/gemm/cuda/wgmma_gemm.h"
#include "tests/kernels/gemm/cuda/gemm_rig.h"

namespace nibble::kernels::cuda {
namespace {

std::vector<int32_t> FirstRows(int64_t rows) {
  std::vector<int32_t> result;
  for (int64_t i = 0; i < rows; ++i) result.push_back(static_cast<int32_t>(i));
  return result;
}

std::vector<float> Reference(const TestWeight& weight, Activations* x, int64_t rows,
                             const std::vector<float>& bias) {
  const int64_t n = weight.desc.n;
  std::vector<float> d(static_cast<size_t>(rows * n));
  kernels::Run(*weight.reference,
               {.m = rows,
                .a = x->values.data(),
                .a_stride = x->stride,
                .a8 = x->Quantized(false),
                .bias = bias.empty() ? nullptr : bias.data(),
                .d = d.data(),
                .d_stride = n},
               Pool());
  return d;
}

class GemmTest : public ::testing::TestWithParam<WeightKind> {
 protected:
  void SetUp() override {
    NIBBLE_SKIP_WITHOUT_DEVICE();
    rig_ = std::make_unique<Rig>();
  }
  // Rows [first, first + rows) of x times the weight, by `plan`.
  std::vector<float> RunRows(const TestWeight& weight, Activations* x, int64_t first, int64_t rows,
                             const std::vector<float>& bias, DType dtype, const GemmPlan& plan) {
    const auto device_bias = rig_->Upload(bias);
    DeviceOutput d(rig_.get(), rows, weight.desc.n, dtype);
    DeviceMatrix a = x->Dense();
    QuantizedRows a8 = x->Quantized(true);
    if (a.data != nullptr) {
      a.data = static_cast<uint8_t*>(a.data) +
               first * x->stride * static_cast<int64_t>(SizeOf(x->dtype));
    } else {
      a8.values += first * x->stride;
      a8.scales += first;
    }
    const absl::Status status = RunPlanned(
        *weight.device, {.m = rows, .a = a, .a8 = a8, .bias = device_bias.data(), .d = d.Matrix()},
        plan, rig_->Context(plan.workspace_bytes), rig_->stream());
    EXPECT_TRUE(status.ok()) << status;
    return d.Read(rig_.get());
  }
  // Every kernel that the weight has, for `rows` rows.
  std::vector<GemmPlan> Plans(const GemmDesc& desc, int64_t rows) const {
    if (GetParam() == WeightKind::kF32) return {Choose(desc, rows, rig_->caps(), false)};
    std::vector<GemmPlan> plans = {PlanSkinny(desc, 8), PlanSkinny(desc, 16),
                                   PlanTiled(desc, 32, 1, rows), PlanTiled(desc, 64, 1, rows)};
    const Form form = FormOf(desc);
    if (form == Form::kFolded || form == Form::kInt8) {
      plans.push_back(PlanTiled(desc, 128, 1, rows));
    }
    if (KParts(desc) > 1) plans.push_back(PlanTiled(desc, 32, KParts(desc), rows));
    if (SupportsWgmma(desc, rig_->caps()).ok()) {
      plans.push_back(PlanWgmma(desc, rows, rig_->caps()));
    }
    return plans;
  }

  testing::Random random_{7};
  std::unique_ptr<Rig> rig_;
};

TEST_P(GemmTest, EveryKernelIsTheReference) {
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape& s : {Shape{3, 40, 320}, Shape{17, 131, 200}, Shape{1, 64, 1100}}) {
    const TestWeight weight = MakeWeight(&random_, GetParam(), s.n, s.k);
    Activations x = MakeActivations(rig_.get(), &random_, weight.desc, s.m);
    const std::vector<float> bias = s.m == 3 ? std::vector<float>{} : random_.Normals(s.n);
    const std::vector<float> expected = Reference(weight, &x, s.m, bias);
    for (const GemmPlan& plan : Plans(weight.desc, s.m)) {
      for (const DType dtype : {DType::kF32, DType::kBf16}) {
        const std::vector<float> actual = RunRows(weight, &x, 0, s.m, bias, dtype, plan);
        EXPECT_TRUE(Matches(weight, x, FirstRows(s.m), actual, expected, dtype))
            << ToString(weight.desc) << " m=" << s.m << " by " << ToString(plan.kernel) << " tile "
            << plan.tile_n << " split " << plan.split_k << " to " << ToString(dtype);
      }
    }
  }
}

// What Run() does with all numbers of tokens; 0 tokens are no launch.
TEST_P(GemmTest, EveryNumberOfTokens) {
  const TestWeight weight = MakeWeight(&random_, GetParam(), 72, 288);
  Activations x = MakeActivations(rig_.get(), &random_, weight.desc, 130);
  const std::vector<float> expected = Reference(weight, &x, 130, {});
  const GemmContext context =
      rig_->Context(WorkspaceBytes(weight.desc, 130, rig_->caps(), /*has_cublaslt=*/false));
  for (const int64_t m : {0, 1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 100, 130}) {
    DeviceOutput d(rig_.get(), m, weight.desc.n, DType::kF32);
    const absl::Status status = cuda::Run(
        *weight.device, {.m = m, .a = x.Dense(), .a8 = x.Quantized(true), .d = d.Matrix()}, context,
        rig_->stream());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(Matches(weight, x, FirstRows(m), d.Read(rig_.get()),
                        {expected.begin(), expected.begin() + m * weight.desc.n}, DType::kF32))
        << "m=" << m;
  }
}

// A row alone, among others, and by every kernel: the same bits, also where sums are rounded.
TEST_P(GemmTest, RowsDoNotDependOnTheBatch) {
  const int64_t m = 19;
  const TestWeight weight = MakeWeight(&random_, GetParam(), 48, 1088);
  if (GetParam() != WeightKind::kF32) {
    ASSERT_GT(KParts(weight.desc), 1);
  }
  Activations x = MakeActivations(rig_.get(), &random_, weight.desc, m);
  const std::vector<float> alone =
      RunRows(weight, &x, 13, 1, {}, DType::kF32, Choose(weight.desc, 1, rig_->caps(), false));
  for (const GemmPlan& plan : Plans(weight.desc, m)) {
    const std::vector<float> all = RunRows(weight, &x, 0, m, {}, DType::kF32, plan);
    EXPECT_EQ(
        std::memcmp(alone.data(), all.data() + 13 * weight.desc.n, alone.size() * sizeof(float)), 0)
        << ToString(plan.kernel) << " tile " << plan.tile_n << " split " << plan.split_k;
  }
}

// A fault in one row of activations stays in that row.
TEST_P(GemmTest, NanScalesStayInTheirRow) {
  const TestWeight weight = MakeWeight(&random_, GetParam(), 40, 160);
  if (!TakesInt8(weight.desc.format)) GTEST_SKIP() << "dense weights take no scales";
  Activations x = MakeActivations(rig_.get(), &random_, weight.desc, 18);
  x.scales[2] = std::numeric_limits<float>::quiet_NaN();
  x.device_scales = rig_->Upload(x.scales);
  const std::vector<float> expected = Reference(weight, &x, 18, {});
  for (const GemmPlan& plan : Plans(weight.desc, 18)) {
    const std::vector<float> actual = RunRows(weight, &x, 0, 18, {}, DType::kF32, plan);
    for (int64_t i = 0; i < 40; ++i) {
      EXPECT_TRUE(std::isnan(actual[static_cast<size_t>(2 * 40 + i)]));
    }
    EXPECT_TRUE(Matches(weight, x, FirstRows(18), actual, expected, DType::kF32));
  }
}

// One fused multiply-add for each k in rising order, as on CPUs.
TEST(GemmCallTest, Float32HasTheBitsOfTheCpusVariant) {
  NIBBLE_SKIP_WITHOUT_DEVICE();
  if (HostCpuFeatures().Best() < Isa::kAvx2) GTEST_SKIP() << "this CPU has no AVX2";
  Rig rig;
  testing::Random random(9);
  const int64_t n = 70;
  const int64_t k = 133;
  const std::vector<float> source = random.Normals(n * k);
  const auto device = PackDense(source.data(), DType::kF32, n, k, DType::kF32, Pool()).value();
  const auto cpu =
      kernels::PackDense(source.data(), DType::kF32, n, k, DType::kF32, Isa::kAvx2, Pool()).value();
  Activations x = MakeActivations(&rig, &random, device->desc(), 35);
  const std::vector<float> bias = random.Normals(n);
  const auto device_bias = rig.Upload(bias);
  DeviceOutput d(&rig, 35, n, DType::kF32);
  const absl::Status status =
      cuda::Run(*device, {.m = 35, .a = x.Dense(), .bias = device_bias.data(), .d = d.Matrix()},
                rig.Context(0), rig.stream());
  ASSERT_TRUE(status.ok()) << status;
  std::vector<float> expected(static_cast<size_t>(35 * n));
  kernels::Run(*cpu,
               {.m = 35,
                .a = x.values.data(),
                .a_stride = x.stride,
                .bias = bias.data(),
                .d = expected.data(),
                .d_stride = n},
               Pool());
  const std::vector<float> actual = d.Read(&rig);
  EXPECT_EQ(std::memcmp(actual.data(), expected.data(), expected.size() * sizeof(float)), 0);
}

// The library reads the weights of our kernels. Where it was not found, those run.
TEST(GemmCallTest, CublasLtMultipliesDenseWeights) {
  NIBBLE_SKIP_WITHOUT_DEVICE();
  const auto lt = CublasLt::Open();
  if (!lt.ok()) GTEST_SKIP() << lt.status();
  Rig rig;
  testing::Random random(10);
  for (const WeightKind kind : {WeightKind::kBf16, WeightKind::kF16}) {
    const TestWeight weight = MakeWeight(&random, kind, 56, 200);
    ASSERT_EQ(Choose(weight.desc, 5, rig.caps(), true).kernel, GemmKernel::kCublasLt);
    Activations x = MakeActivations(&rig, &random, weight.desc, 5);
    const std::vector<float> expected = Reference(weight, &x, 5, {});
    DeviceOutput d(&rig, 5, 56, DType::kF32);
    GemmContext context = rig.Context(WorkspaceBytes(weight.desc, 5, rig.caps(), true));
    context.cublaslt = lt->get();
    const absl::Status status =
        cuda::Run(*weight.device, {.m = 5, .a = x.Dense(), .d = d.Matrix()}, context, rig.stream());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(Matches(weight, x, FirstRows(5), d.Read(&rig), expected, DType::kF32));
  }
}

TEST(GemmCallTest, RefusesWhatKernelsCannotRead) {
  NIBBLE_SKIP_WITHOUT_DEVICE();
  Rig rig;
  testing::Random random(3);
  const TestWeight weight = MakeWeight(&random, WeightKind::kFolded128, 64, 256);
  Activations x = MakeActivations(&rig, &random, weight.desc, 4);
  DeviceOutput d(&rig, 4, 64, DType::kF32);
  const DeviceGemmArgs good = {.m = 4, .a8 = x.Quantized(true), .d = d.Matrix()};
  const auto run = [&](const DeviceGemmArgs& args) {
    return std::string(cuda::Run(*weight.device, args, rig.Context(0), rig.stream()).message());
  };
  EXPECT_EQ(run(good), "");
  DeviceGemmArgs args = good;
  args.m = -1;
  EXPECT_THAT(run(args), ::testing::HasSubstr("-1 rows, the range is 0..1073741823"));
  args = good;
  args.a8.stride = 264;
  EXPECT_THAT(run(args), ::testing::HasSubstr("rows of a8 are 264 elements apart"));
  args = good;
  args.a8.values += 1;
  EXPECT_THAT(run(args), ::testing::HasSubstr("a8 is at 0x"));
  args = good;
  args.a8.scales = nullptr;
  EXPECT_THAT(run(args), ::testing::HasSubstr("a8 has no scales"));
  args = good;
  args.d.dtype = DType::kF16;
  EXPECT_THAT(run(args), ::testing::HasSubstr("d is float16"));
  args = good;
  args.d.stride = 60;
  EXPECT_THAT(run(args), ::testing::HasSubstr("rows of d are 60 elements apart"));
  const GemmPlan split = PlanTiled(weight.desc, 32, KParts(weight.desc) * 2, 4);
  EXPECT_THAT(
      std::string(RunPlanned(*weight.device, good, split, rig.Context(0), rig.stream()).message()),
      ::testing::HasSubstr("takes a workspace of"));
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Kinds, GemmTest, ::testing::ValuesIn(kAllKinds), KindName);

}  // namespace nibble::kernels::cuda
