// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/cublaslt.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/float16.h"
#include "tests/base/cuda/device_test.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

struct Shape {
  int64_t m;
  int64_t n;
  int64_t k;
};
constexpr Shape kShapes[] = {{1, 64, 64}, {3, 40, 72}, {17, 257, 128}, {64, 16, 8}};

uint16_t Encode(DType type, float value) {
  return type == DType::kBf16 ? ToBFloat16(value).bits : ToFloat16(value).bits;
}
float Decode(DType type, uint16_t bits) {
  return type == DType::kBf16 ? ToFloat(BFloat16{bits}) : ToFloat(Float16{bits});
}

class CublasLtTest : public testing::DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto lt = CublasLt::Open();
    if (!lt.ok()) GTEST_SKIP() << lt.status();
    lt_ = *std::move(lt);
    workspace_ = Allocate<uint8_t>(LtInt8WorkspaceBytes(64, 512));
  }

  std::unique_ptr<CublasLt> lt_;
  gpu::DeviceBuffer<uint8_t> workspace_;
};

TEST_F(CublasLtTest, DenseWithBias) {
  testing::Random random(5);
  for (const DType type : {DType::kBf16, DType::kF16}) {
    for (const DType d_type : {DType::kF32, type}) {
      for (const Shape& shape : kShapes) {
        for (const bool has_bias : {false, true}) {
          const int64_t stride = shape.k + 8;
          const int64_t d_stride = (shape.n + 15) / 8 * 8;
          std::vector<uint16_t> a(static_cast<size_t>(shape.m * stride), 0xFFFF);
          std::vector<uint16_t> b(static_cast<size_t>(shape.n * stride), 0xFFFF);
          std::vector<float> bias;
          for (int64_t i = 0; i < shape.n; ++i) {
            bias.push_back(Decode(DType::kBf16, Encode(DType::kBf16, random.Normal())));
          }
          for (auto* const matrix : {&a, &b}) {
            for (size_t i = 0; i < matrix->size(); ++i) {
              if (static_cast<int64_t>(i) % stride < shape.k) {
                (*matrix)[i] = Encode(type, random.Normal());
              }
            }
          }
          std::vector<float> expected(static_cast<size_t>(shape.m * shape.n));
          std::vector<float> bounds(expected.size());
          for (int64_t row = 0; row < shape.m; ++row) {
            for (int64_t column = 0; column < shape.n; ++column) {
              double sum = has_bias ? bias[static_cast<size_t>(column)] : 0.0;
              double magnitude = std::abs(sum);
              for (int64_t k = 0; k < shape.k; ++k) {
                const double product =
                    static_cast<double>(Decode(type, a[static_cast<size_t>(row * stride + k)])) *
                    Decode(type, b[static_cast<size_t>(column * stride + k)]);
                sum += product;
                magnitude += std::abs(product);
              }
              const auto index = static_cast<size_t>(row * shape.n + column);
              expected[index] = static_cast<float>(sum);
              // Each addition rounds what is summed so far by 2^-23 (tensor cores cut off); the
              // result, and the bias before, by half of the last bit of D's type.
              const double d_epsilon = d_type == DType::kBf16  ? 0x1p-8
                                       : d_type == DType::kF16 ? 0x1p-11
                                                               : 0x1p-24;
              bounds[index] = static_cast<float>(
                  magnitude * static_cast<double>(shape.k + 1) * 0x1p-23 +
                  2 * d_epsilon *
                      (std::abs(sum) +
                       std::abs(has_bias ? bias[static_cast<size_t>(column)] : 0.0F)));
            }
          }
          const auto a_device = Upload(a);
          const auto b_device = Upload(b);
          const auto bias_device = Upload(bias);
          const auto d = Upload(
              std::vector<uint8_t>(static_cast<size_t>(shape.m * d_stride) * SizeOf(d_type), 0xFF));
          const absl::Status status =
              MultiplyDense(lt_.get(),
                            {.m = shape.m,
                             .n = shape.n,
                             .k = shape.k,
                             .type = type,
                             .a = a_device.data(),
                             .a_stride = stride,
                             .b = b_device.data(),
                             .b_stride = stride,
                             .d_type = d_type,
                             .d = d.data(),
                             .d_stride = d_stride},
                            has_bias ? bias_device.data() : nullptr, workspace_.data(),
                            static_cast<int64_t>(workspace_.size()), stream_.get());
          ASSERT_TRUE(status.ok()) << status;
          const auto bytes = Download(d);
          std::vector<float> actual(expected.size());
          for (int64_t i = 0; i < shape.m * d_stride; ++i) {
            const uint8_t* const at = bytes.data() + static_cast<size_t>(i) * SizeOf(d_type);
            float value = 0;
            uint16_t bits = 0;
            std::memcpy(d_type == DType::kF32 ? static_cast<void*>(&value) : &bits, at,
                        SizeOf(d_type));
            if (d_type != DType::kF32) value = Decode(d_type, bits);
            if (i % d_stride < shape.n) {
              actual[static_cast<size_t>(i / d_stride * shape.n + i % d_stride)] = value;
            } else {
              ASSERT_TRUE(std::isnan(value)) << "between the rows of D";
            }
          }
          EXPECT_TRUE(testing::AllWithin<float>(
              {actual.data(), shape.m, shape.n, shape.n},
              {expected.data(), shape.m, shape.n, shape.n},
              [&](int64_t row, int64_t column) {
                return bounds[static_cast<size_t>(row * shape.n + column)];
              }))
              << ToString(type) << " into " << ToString(d_type) << " " << shape.m;
        }
      }
    }
  }
}

TEST_F(CublasLtTest, Int8HasTheBitsOfTheDefinition) {
  testing::Random random(6);
  for (const Shape& shape : kShapes) {
    const int64_t stride = (shape.k + 15) / 16 * 16 + 16;
    const auto bytes = [&](int64_t rows) {
      std::vector<int8_t> values(static_cast<size_t>(rows * stride));
      for (int8_t& value : values) value = static_cast<int8_t>(random.Int(-127, 127));
      return values;
    };
    const auto a = bytes(shape.m);
    const auto b = bytes(shape.n);
    const auto a_scales = random.Normals(shape.m);
    const auto b_scales = random.Normals(shape.n);
    const auto bias = random.Normals(shape.n);
    std::vector<float> expected;
    for (int64_t row = 0; row < shape.m; ++row) {
      for (int64_t column = 0; column < shape.n; ++column) {
        int32_t sum = 0;
        for (int64_t k = 0; k < shape.k; ++k) {
          sum += a[static_cast<size_t>(row * stride + k)] *
                 b[static_cast<size_t>(column * stride + k)];
        }
        const float scale =
            a_scales[static_cast<size_t>(row)] * b_scales[static_cast<size_t>(column)];
        const float scaled = static_cast<float>(sum) * scale;
        expected.push_back(scaled + bias[static_cast<size_t>(column)]);
      }
    }
    const auto a_device = Upload(a);
    const auto b_device = Upload(b);
    const auto a_scales_device = Upload(a_scales);
    const auto b_scales_device = Upload(b_scales);
    const auto bias_device = Upload(bias);
    const auto d = Allocate<float>(expected.size());
    const LtInt8Args args{
        .m = shape.m,
        .n = shape.n,
        .k = shape.k,
        .a = {.values = a_device.data(), .scales = a_scales_device.data(), .stride = stride},
        .b = b_device.data(),
        .b_stride = stride,
        .scales = b_scales_device.data(),
        .bias = bias_device.data(),
        .d = {d.data(), DType::kF32, shape.n}};
    const absl::Status status = MultiplyInt8(
        lt_.get(), args, workspace_.data(), static_cast<int64_t>(workspace_.size()), stream_.get());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Download(d), expected);
    EXPECT_EQ(MultiplyInt8(lt_.get(), args, workspace_.data(), 16, stream_.get()).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(CublasLtTest, RefusesOtherTypes) {
  for (const auto& [type, d_type] :
       {std::pair{DType::kF32, DType::kF32}, std::pair{DType::kF16, DType::kBf16},
        std::pair{DType::kI8, DType::kI32}}) {
    EXPECT_EQ(MultiplyDense(lt_.get(), {.m = 1, .n = 1, .k = 1, .type = type, .d_type = d_type},
                            nullptr, nullptr, 0, stream_.get())
                  .code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(CublasLtTest, NoRowsAreNoWork) {
  EXPECT_TRUE(MultiplyDense(lt_.get(), {.n = 8, .k = 8}, nullptr, nullptr, 0, stream_.get()).ok());
  EXPECT_TRUE(MultiplyInt8(lt_.get(), {.n = 8, .k = 8}, nullptr, 0, stream_.get()).ok());
}

}  // namespace
}  // namespace nibble::kernels::cuda
