// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/norm/cuda/rms_norm.h"

#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/norm/rms_norm.h"
#include "tests/kernels/device/device_rows.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::AllWithin;
using ::nibble::testing::Int8Rows;
using ::nibble::testing::Random;
using ::nibble::testing::Rows;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Of y, relative. A sum of squares of positive terms through chains of at most 16 chunks of 8, 5
// shuffles and 16 warps loses 149 roundings, half of which the square root leaves; the mean, the
// addition, the root, its inverse and two products have one each.
constexpr double kTolerance = (149.0 / 2 + 6) * 0x1p-24;
double RoundingOf(DType dtype) {
  return dtype == DType::kBf16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0.0;
}

class DeviceRmsNorm : public ::nibble::testing::RowsTest {
 protected:
  struct Problem {
    int64_t rows = 1;
    int64_t hidden = 8;
    std::optional<DType> delta;
    std::optional<DType> out;
    bool quantize = false;
  };

  // Against the reference, and int8 against what the float result gives.
  void Check(const Problem& p, Random* random) {
    const int64_t n = p.rows * p.hidden;
    const std::vector<float> input = random->Normals(n, 2.0F);
    Rows x = MakeRows(DType::kF32, p.rows, p.hidden, p.hidden + 12, input);
    std::vector<float> sum = x.values;
    Rows delta;
    if (p.delta.has_value()) {
      delta = MakeRows(*p.delta, p.rows, p.hidden, p.hidden + 8, random->Normals(n));
      for (int64_t row = 0; row < p.rows; ++row) {
        for (int64_t i = 0; i < p.hidden; ++i) {
          sum[static_cast<size_t>(row * x.stride + i)] += delta.Row(row)[i];
        }
      }
    }
    const std::vector<float> weight = random->Normals(p.hidden);
    const auto device_weight = Upload(weight);
    RmsNormArgs args{.num_rows = p.rows,
                     .hidden = p.hidden,
                     .x = reinterpret_cast<float*>(x.bytes.data()),
                     .x_stride = x.stride,
                     .delta = p.delta.has_value() ? delta.View() : DeviceMatrix{},
                     .weight = device_weight.data(),
                     .epsilon = 1e-4F};
    Rows y = MakeOutput(p.out.value_or(DType::kF32), p.rows, p.hidden, p.hidden + 16);
    Int8Rows y8 = MakeInt8Output(p.rows, p.hidden, (p.hidden + 15) / 16 * 16 + 32);
    if (p.out.has_value()) args.out.values = y.View();
    if (p.quantize) args.out.quantized = y8.View();
    const absl::Status status = RmsNorm(args, stream_.get());
    ASSERT_TRUE(status.ok()) << status;

    Read(&x);
    EXPECT_TRUE(AllEqual<float>({x.values.data(), p.rows, p.hidden, x.stride},
                                {sum.data(), p.rows, p.hidden, x.stride}));
    std::vector<float> expected(static_cast<size_t>(n));
    ThreadPool pool(1);
    kernels::RmsNorm({.num_rows = p.rows,
                      .hidden = p.hidden,
                      .x = sum.data(),
                      .x_stride = x.stride,
                      .weight = weight.data(),
                      .epsilon = args.epsilon,
                      .y = expected.data(),
                      .y_stride = p.hidden},
                     Isa::kRef, &pool);
    if (p.out.has_value()) {
      Read(&y);
      const double relative = kTolerance + RoundingOf(*p.out);
      EXPECT_TRUE(AllWithin<float>(
          {y.values.data(), p.rows, p.hidden, y.stride},
          {expected.data(), p.rows, p.hidden, p.hidden},
          [&](int64_t row, int64_t column) {
            return relative * std::abs(expected[static_cast<size_t>(row * p.hidden + column)]) +
                   1e-7;  // half's smallest steps
          }))
          << p.hidden;
    }
    if (p.quantize) {
      Read(&y8);
      if (p.out == DType::kF32) ExpectQuantized(y8, y.values, y.stride, p.rows);
    }
  }
};

TEST_F(DeviceRmsNorm, IsTheReference) {
  Random random(1);
  // Every kind of block.
  for (const int64_t hidden : {8, 64, 248, 264, 2048, 4104, 8200, 16392, 32776}) {
    const int64_t rows = hidden > 5000 ? 1 : 3;
    for (const std::optional<DType> delta : {std::optional<DType>(), std::optional(DType::kBf16)}) {
      Check({.rows = rows, .hidden = hidden, .delta = delta, .out = DType::kF32, .quantize = true},
            &random);
    }
  }
}

TEST_F(DeviceRmsNorm, EveryType) {
  Random random(2);
  for (const std::optional<DType> delta :
       {std::optional<DType>(), std::optional(DType::kF32), std::optional(DType::kBf16),
        std::optional(DType::kF16)}) {
    for (const DType out : {DType::kF32, DType::kBf16, DType::kF16}) {
      Check({.rows = 5, .hidden = 136, .delta = delta, .out = out}, &random);
    }
  }
}

// The same bits alone, among others, and beside either output.
TEST_F(DeviceRmsNorm, ARowDependsOnItselfAlone) {
  const int64_t rows = 7;
  const int64_t hidden = 1032;
  Random random(4);
  const Rows x = MakeRows(DType::kF32, rows, hidden, hidden, random.Normals(rows * hidden));
  const auto weight = Upload(random.Normals(hidden));
  Rows all = MakeOutput(DType::kF32, rows, hidden, hidden);
  Int8Rows all8 = MakeInt8Output(rows, hidden, 1040);
  const auto run = [&](int64_t row, int64_t count, const RowOutput& out) {
    return RmsNorm({.num_rows = count,
                    .hidden = hidden,
                    .x = static_cast<float*>(x.From(row).data),
                    .x_stride = hidden,
                    .weight = weight.data(),
                    .out = out},
                   stream_.get());
  };
  ASSERT_TRUE(run(0, rows, {.values = all.View()}).ok());
  ASSERT_TRUE(run(0, rows, {.quantized = all8.View()}).ok());
  Read(&all);
  Read(&all8);
  ExpectQuantized(all8, all.values, hidden, rows);
  for (int64_t row = 0; row < rows; ++row) {
    Rows one = MakeOutput(DType::kF32, 1, hidden, hidden);
    ASSERT_TRUE(run(row, 1, {.values = one.View()}).ok());
    Read(&one);
    EXPECT_TRUE(
        AllEqual<float>({one.values.data(), 1, hidden, hidden}, {all.Row(row), 1, hidden, hidden}));
  }
}

TEST_F(DeviceRmsNorm, ANaNStaysInItsRow) {
  const int64_t rows = 4;
  const int64_t hidden = 520;
  std::vector<float> values(rows * hidden, 1.0F);
  values[hidden + 3] = kNaN;
  values[2 * hidden + 519] = std::numeric_limits<float>::infinity();
  const Rows x = MakeRows(DType::kF32, rows, hidden, hidden, values);
  const auto weight = Upload(std::vector<float>(hidden, 1.0F));
  Rows y = MakeOutput(DType::kBf16, rows, hidden, hidden);
  Int8Rows y8 = MakeInt8Output(rows, hidden, 528);
  ASSERT_TRUE(RmsNorm({.num_rows = rows,
                       .hidden = hidden,
                       .x = static_cast<float*>(x.View().data),
                       .x_stride = hidden,
                       .weight = weight.data(),
                       .out = {.values = y.View(), .quantized = y8.View()}},
                      stream_.get())
                  .ok());
  Read(&y);
  Read(&y8);
  EXPECT_TRUE(std::isnan(y.Row(1)[0]) && std::isnan(y.Row(1)[519]));
  EXPECT_TRUE(std::isnan(y.Row(2)[519]));
  EXPECT_TRUE(std::isnan(y8.scales[1]) && std::isnan(y8.scales[2]));
  for (const int64_t row : {0, 3}) {
    EXPECT_EQ(y.Row(row)[0], 1.0F);
    EXPECT_EQ(y8.sums[static_cast<size_t>(row)], 127 * hidden);
  }
}

TEST_F(DeviceRmsNorm, RefusesWhatItHasNot) {
  const auto run = [&](RmsNormArgs args) { return RmsNorm(args, stream_.get()); };
  const auto weight = Upload(std::vector<float>(8));
  EXPECT_TRUE(run({.num_rows = 0, .hidden = 8, .x_stride = 8, .weight = weight.data()}).ok());
  EXPECT_EQ(run({.num_rows = 1, .hidden = 12}).message(),
            "hidden is 12, wanted is a multiple of 8, 65536 at most");
  EXPECT_EQ(run({.num_rows = 1, .hidden = 65544}).message(),
            "hidden is 65544, wanted is a multiple of 8, 65536 at most");
  EXPECT_EQ(run({.num_rows = 1, .hidden = 64, .x_stride = 60}).message(),
            "the stride of x is 60 elements, wanted are 64 or more of whole 16 bytes");
}

}  // namespace
}  // namespace nibble::kernels::cuda
