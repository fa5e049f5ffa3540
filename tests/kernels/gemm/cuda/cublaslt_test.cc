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

// A product with a bias or without, what it is, and how far off a result may be.
struct DenseProblem {
  Shape shape;
  DType type;
  DType d_type;
  int64_t stride;           // of a and b; NaN between rows
  std::vector<uint16_t> a;  // of `type`
  std::vector<uint16_t> b;
  std::vector<float> bias;  // empty: none
  std::vector<float> expected;
  std::vector<float> bounds;
};

std::vector<uint16_t> MakeMatrix(DType type, int64_t rows, int64_t columns, int64_t stride,
                                 testing::Random* random) {
  std::vector<uint16_t> matrix(static_cast<size_t>(rows * stride), 0xFFFF);
  for (size_t i = 0; i < matrix.size(); ++i) {
    if (static_cast<int64_t>(i) % stride < columns) matrix[i] = Encode(type, random->Normal());
  }
  return matrix;
}

DenseProblem MakeDense(const Shape& shape, DType type, DType d_type, bool has_bias,
                       testing::Random* random) {
  const int64_t stride = shape.k + 8;
  DenseProblem problem{.shape = shape,
                       .type = type,
                       .d_type = d_type,
                       .stride = stride,
                       .a = MakeMatrix(type, shape.m, shape.k, stride, random),
                       .b = MakeMatrix(type, shape.n, shape.k, stride, random),
                       .bias = {},
                       .expected = {},
                       .bounds = {}};
  for (int64_t i = 0; has_bias && i < shape.n; ++i) {
    problem.bias.push_back(Decode(DType::kBf16, Encode(DType::kBf16, random->Normal())));
  }
  for (int64_t row = 0; row < shape.m; ++row) {
    for (int64_t column = 0; column < shape.n; ++column) {
      const double bias = has_bias ? problem.bias[static_cast<size_t>(column)] : 0.0;
      double sum = bias;
      double magnitude = std::abs(bias);
      for (int64_t k = 0; k < shape.k; ++k) {
        const double product =
            static_cast<double>(Decode(type, problem.a[static_cast<size_t>(row * stride + k)])) *
            Decode(type, problem.b[static_cast<size_t>(column * stride + k)]);
        sum += product;
        magnitude += std::abs(product);
      }
      // Each addition rounds what is summed so far by 2^-23 (tensor cores cut off); the result, and
      // the bias before, by half of the last bit of D's type.
      const double d_epsilon = d_type == DType::kBf16  ? 0x1p-8
                               : d_type == DType::kF16 ? 0x1p-11
                                                       : 0x1p-24;
      problem.expected.push_back(static_cast<float>(sum));
      problem.bounds.push_back(
          static_cast<float>(magnitude * static_cast<double>(shape.k + 1) * 0x1p-23 +
                             2 * d_epsilon * (std::abs(sum) + std::abs(bias))));
    }
  }
  return problem;
}

class CublasLtTest : public testing::DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto lt = CublasLt::Open();
    if (!lt.ok()) GTEST_SKIP() << lt.status();
    lt_ = *std::move(lt);
    workspace_ = Allocate<uint8_t>(CublasLt::kWorkspaceBytes);
  }

  void ExpectDense(const DenseProblem& x) {
    const auto& [m, n, k] = x.shape;
    const int64_t d_stride = (n + 15) / 8 * 8;
    const size_t element = SizeOf(x.d_type);
    const auto a = Upload(x.a);
    const auto b = Upload(x.b);
    const auto bias = Upload(x.bias);
    const auto d = Upload(std::vector<uint8_t>(static_cast<size_t>(m * d_stride) * element, 0xFF));
    const absl::Status status =
        MultiplyDense(lt_.get(),
                      {.m = m,
                       .n = n,
                       .k = k,
                       .type = x.type,
                       .a = a.data(),
                       .a_stride = x.stride,
                       .b = b.data(),
                       .b_stride = x.stride,
                       .d_type = x.d_type,
                       .d = d.data(),
                       .d_stride = d_stride},
                      x.bias.empty() ? nullptr : bias.data(), workspace_.data(),
                      static_cast<int64_t>(workspace_.size()), stream_.get());
    ASSERT_TRUE(status.ok()) << status;
    const auto bytes = Download(d);
    std::vector<float> actual;
    for (int64_t i = 0; i < m * d_stride; ++i) {
      const uint8_t* const at = bytes.data() + static_cast<size_t>(i) * element;
      float value = 0;
      uint16_t bits = 0;
      std::memcpy(x.d_type == DType::kF32 ? static_cast<void*>(&value) : &bits, at, element);
      if (x.d_type != DType::kF32) value = Decode(x.d_type, bits);
      if (i % d_stride < n) {
        actual.push_back(value);
      } else {
        ASSERT_TRUE(std::isnan(value)) << "between the rows of D";
      }
    }
    EXPECT_TRUE(
        testing::AllWithin<float>({actual.data(), m, n, n}, {x.expected.data(), m, n, n},
                                  [&](int64_t row, int64_t column) {
                                    return x.bounds[static_cast<size_t>(row * x.shape.n + column)];
                                  }))
        << ToString(x.type) << " into " << ToString(x.d_type) << " " << m;
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
          ExpectDense(MakeDense(shape, type, d_type, has_bias, &random));
        }
      }
    }
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
}

}  // namespace
}  // namespace nibble::kernels::cuda
