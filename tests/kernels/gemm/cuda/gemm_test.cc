// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

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

}  // namespace

INSTANTIATE_TEST_SUITE_P(Kinds, GemmTest, ::testing::ValuesIn(kAllKinds), KindName);

}  // namespace nibble::kernels::cuda
