// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/quant/cuda/quantize_rows.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/quant/cuda/row_plan.h"
#include "tests/kernels/device/device_rows.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::Int8Rows;
using ::nibble::testing::Random;
using ::nibble::testing::Rows;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr DType kTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

class DeviceQuantizeRows : public ::nibble::testing::RowsTest {};

TEST_F(DeviceQuantizeRows, IsTheReferenceToTheBit) {
  Random random(1);
  // Of every kind of block: 1, 2, 4 and 8 chunks of 8 in a thread's registers, and none.
  for (const int64_t k : {8, 248, 256, 264, 4096, 4104, 8200, 16392, 32776}) {
    for (const DType dtype : kTypes) {
      const int64_t rows = k > 5000 ? 2 : 5;
      const Rows x = MakeRows(dtype, rows, k, k + 24, random.Normals(rows * k, 3.0F));
      Rows copy = MakeOutput(DType::kF32, rows, k, k + 4);
      Int8Rows quantized = MakeInt8Output(rows, k, (k + 15) / 16 * 16 + 16);
      ASSERT_TRUE(QuantizeRows(x.View(), rows, k,
                               {.values = copy.View(), .quantized = quantized.View()}, nullptr,
                               stream_.get())
                      .ok());
      Read(&copy);
      Read(&quantized);
      EXPECT_TRUE(AllEqual<float>({copy.values.data(), rows, k, copy.stride},
                                  {x.values.data(), rows, k, x.stride}))
          << k;
      ExpectQuantized(quantized, x.values, x.stride, rows);
    }
  }
}

TEST_F(DeviceQuantizeRows, RowsWithoutAScale) {
  const int64_t k = 520;
  const std::vector<float> plain = Random(2).Normals(k);
  std::vector<float> values;
  const auto add = [&values](std::vector<float> row) {
    values.insert(values.end(), row.begin(), row.end());
  };
  std::vector<float> row = plain;
  row[519] = kNaN;
  add(row);
  row = plain;
  row[7] = -kInfinity;
  add(row);
  add(std::vector<float>(k, 0.0F));
  add(std::vector<float>(k, -0.0F));
  row.assign(k, 0x1p-120F);
  add(row);
  row[100] = -0x1p-119F;
  add(row);
  row = plain;
  row[0] = std::numeric_limits<float>::max();
  add(row);
  // Halves of a step: to even.
  for (size_t i = 0; i < row.size(); ++i) row[i] = 0.5F * static_cast<float>(i % 255) - 63.5F;
  row[1] = 127.0F;
  add(row);
  add(plain);
  const auto rows = static_cast<int64_t>(values.size()) / k;
  const Rows x = MakeRows(DType::kF32, rows, k, k, values);
  Int8Rows quantized = MakeInt8Output(rows, k, 528);
  ASSERT_TRUE(
      QuantizeRows(x.View(), rows, k, {.quantized = quantized.View()}, nullptr, stream_.get())
          .ok());
  Read(&quantized);
  ExpectQuantized(quantized, x.values, x.stride, rows);
  EXPECT_TRUE(std::isnan(quantized.scales[0]));
}

TEST_F(DeviceQuantizeRows, ChangesTypes) {
  const int64_t rows = 3;
  const int64_t k = 104;
  std::vector<float> values = Random(3).Normals(rows * k, 100.0F);
  values[5] = 1e30F;
  values[6] = -1e-30F;
  values[7] = kInfinity;
  for (const DType from : kTypes) {
    const Rows x = MakeRows(from, rows, k, k + 8, values);
    for (const DType to : kTypes) {
      Rows y = MakeOutput(to, rows, k, k + 16);
      ASSERT_TRUE(
          QuantizeRows(x.View(), rows, k, {.values = y.View()}, nullptr, stream_.get()).ok());
      Read(&y);
      std::vector<float> expected = x.values;
      for (float& value : expected) value = ::nibble::testing::RoundTo(to, value);
      EXPECT_TRUE(AllEqual<float>({y.values.data(), rows, k, y.stride},
                                  {expected.data(), rows, k, x.stride}));
    }
  }
}

TEST_F(DeviceQuantizeRows, LeavesRowsAloneThatTheDeviceSaysAreNone) {
  const int64_t k = 72;
  const int64_t rows = 6;
  const Rows x = MakeRows(DType::kBf16, rows, k, k, Random(4).Normals(rows * k));
  for (const int32_t valid : {-1, 0, 4, 100}) {
    const auto valid_rows = Upload(std::vector<int32_t>{valid});
    Int8Rows quantized = MakeInt8Output(rows, k, 80);
    ASSERT_TRUE(QuantizeRows(x.View(), rows, k, {.quantized = quantized.View()}, valid_rows.data(),
                             stream_.get())
                    .ok());
    Read(&quantized);
    ExpectQuantized(quantized, x.values, x.stride, valid);
  }
}

TEST_F(DeviceQuantizeRows, RefusesWhatItHasNot) {
  const Rows x = MakeRows(DType::kF32, 1, 64, 64, std::vector<float>(64));
  const Int8Rows quantized = MakeInt8Output(1, 64, 64);
  const RowOutput out{.quantized = quantized.View()};
  const auto run = [&](const DeviceMatrix& from, int64_t rows, int64_t k, const RowOutput& to) {
    return QuantizeRows(from, rows, k, to, nullptr, stream_.get());
  };
  EXPECT_TRUE(run(x.View(), 0, 64, out).ok());
  EXPECT_EQ(run(x.View(), -1, 64, out).message(),
            "the number of rows is -1, the limits are 0 and 2147483647");
  EXPECT_EQ(run(x.View(), 1, 63, out).message(),
            "k is 63, wanted is a multiple of 8, 16777216 at most");
  EXPECT_EQ(run(x.View(), 1, 64, {}).message(), "there is no output");
  DeviceMatrix odd = x.View();
  odd.stride = 66;
  EXPECT_EQ(run(odd, 1, 64, out).message(),
            "the stride of x is 66 elements, wanted are 64 or more of whole 16 bytes");
  odd = x.View();
  odd.dtype = DType::kI8;
  EXPECT_EQ(run(odd, 1, 64, out).message(), "x is of int8, wanted is float32, bfloat16 or float16");
  RowOutput no_sums = out;
  no_sums.quantized.sums = nullptr;
  EXPECT_EQ(run(x.View(), 1, 64, no_sums).code(), absl::StatusCode::kInvalidArgument);
  odd = x.View();
  odd.data = static_cast<char*>(odd.data) + 4;
  EXPECT_EQ(run(odd, 1, 64, out).code(), absl::StatusCode::kInvalidArgument);
}

TEST(RowPlan, HoldsRowsInRegistersWhileTheyFit) {
  const auto expect = [](int64_t columns, int held, unsigned threads) {
    const RowPlan plan = PlanRow(columns);
    EXPECT_EQ(plan.held, held) << columns;
    EXPECT_EQ(plan.threads, threads) << columns;
  };
  expect(8, 1, 32);
  expect(264, 1, 64);
  expect(4096, 1, 512);
  expect(4104, 2, 288);
  expect(8192, 2, 512);
  expect(14336, 4, 448);
  expect(28672, 8, 448);
  expect(32768, 8, 512);
  expect(32776, 0, 512);
}

}  // namespace
}  // namespace nibble::kernels::cuda
