// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/cuda/lt_int8.h"

#include <cstdint>
#include <memory>
#include <vector>

#include "base/float16.h"
#include "tests/base/cuda/device_test.h"
#include "tests/testing/random.h"

namespace nibble::bench {
namespace {

struct Shape {
  int64_t m;
  int64_t n;
  int64_t k;
};
constexpr Shape kShapes[] = {{1, 64, 64}, {3, 40, 72}, {17, 257, 128}, {64, 16, 8}};

class LtInt8Test : public testing::DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto lt = kernels::cuda::CublasLt::Open();
    if (!lt.ok()) GTEST_SKIP() << lt.status();
    lt_ = *std::move(lt);
    workspace_ = Allocate<uint8_t>(LtInt8WorkspaceBytes(64, 512));
  }
  absl::Status Multiply(const LtInt8Args& args, int64_t workspace_bytes) {
    return MultiplyInt8(lt_.get(), args, workspace_.data(), workspace_bytes, stream_.get());
  }

  std::unique_ptr<kernels::cuda::CublasLt> lt_;
  gpu::DeviceBuffer<uint8_t> workspace_;
};

TEST_F(LtInt8Test, HasTheBitsOfTheDefinition) {
  testing::Random random(6);
  for (const Shape& shape : kShapes) {
    const int64_t stride = (shape.k + 15) / 16 * 16 + 16;
    const auto codes = [&](int64_t rows) {
      std::vector<int8_t> values(static_cast<size_t>(rows * stride));
      for (int8_t& value : values) value = static_cast<int8_t>(random.Int(-127, 127));
      return values;
    };
    const auto a = codes(shape.m);
    const auto b = codes(shape.n);
    const auto a_scales = random.Normals(shape.m);
    const auto b_scales = random.Normals(shape.n);
    std::vector<uint16_t> expected;
    for (int64_t row = 0; row < shape.m; ++row) {
      for (int64_t column = 0; column < shape.n; ++column) {
        int32_t sum = 0;
        for (int64_t k = 0; k < shape.k; ++k) {
          sum += a[static_cast<size_t>(row * stride + k)] *
                 b[static_cast<size_t>(column * stride + k)];
        }
        const float scale =
            a_scales[static_cast<size_t>(row)] * b_scales[static_cast<size_t>(column)];
        expected.push_back(ToBFloat16(static_cast<float>(sum) * scale).bits);
      }
    }
    const auto a_device = Upload(a);
    const auto b_device = Upload(b);
    const auto a_scales_device = Upload(a_scales);
    const auto b_scales_device = Upload(b_scales);
    const auto d = Allocate<uint16_t>(expected.size());
    const LtInt8Args args{
        .m = shape.m,
        .n = shape.n,
        .k = shape.k,
        .a = {.values = a_device.data(), .scales = a_scales_device.data(), .stride = stride},
        .b = b_device.data(),
        .b_stride = stride,
        .scales = b_scales_device.data(),
        .d = {d.data(), DType::kBf16, shape.n}};
    const absl::Status status = Multiply(args, static_cast<int64_t>(workspace_.size()));
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Download(d), expected);
    EXPECT_EQ(Multiply(args, 16).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(LtInt8Test, RefusesOtherTypesAndSizes) {
  const LtInt8Args good{.m = 8, .n = 8, .k = 16, .d = {nullptr, DType::kBf16, 8}};
  const auto code = [&](auto change) {
    LtInt8Args args = good;
    change(&args);
    return Multiply(args, static_cast<int64_t>(workspace_.size())).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](LtInt8Args* x) { x->m = 0; }), kInvalid);
  EXPECT_EQ(code([](LtInt8Args* x) { x->n = int64_t{1} << 24; }), kInvalid);
  EXPECT_EQ(code([](LtInt8Args* x) { x->d.dtype = DType::kF32; }), kInvalid);
}

}  // namespace
}  // namespace nibble::bench
