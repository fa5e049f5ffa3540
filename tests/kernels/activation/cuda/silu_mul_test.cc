// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/activation/cuda/silu_mul.h"

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/activation/silu_mul.h"
#include "tests/kernels/device/device_rows.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

namespace nibble::kernels::cuda {
namespace {

using ::nibble::testing::AllEqual;
using ::nibble::testing::AllWithin;
using ::nibble::testing::Int8Rows;
using ::nibble::testing::Random;
using ::nibble::testing::RoundTo;
using ::nibble::testing::Rows;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class DeviceSiluMul : public ::nibble::testing::RowsTest {
 protected:
  static std::vector<float> OnCpu(const Rows& gate_up, int64_t intermediate, Isa isa) {
    std::vector<float> y(static_cast<size_t>(gate_up.rows * intermediate));
    ThreadPool pool(1);
    kernels::SiluMul({.num_rows = gate_up.rows,
                      .intermediate = intermediate,
                      .gate_up = gate_up.values.data(),
                      .gate_up_stride = gate_up.stride,
                      .y = y.data(),
                      .y_stride = intermediate},
                     isa, &pool);
    return y;
  }
};

// Float and int8, of every kind of block.
TEST_F(DeviceSiluMul, IsTheReference) {
  Random random(1);
  for (const int64_t n : {8, 72, 256, 2056, 4104, 8200, 16392, 32776}) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
      if (n > 5000 && dtype != DType::kBf16) continue;
      const int64_t rows = n > 2500 ? 1 : 3;
      const Rows gate_up =
          MakeRows(dtype, rows, 2 * n, 2 * n + 8, random.Normals(rows * 2 * n, 4.0F));
      Rows y = MakeOutput(DType::kF32, rows, n, n + 4);
      Rows alone = MakeOutput(DType::kF32, rows, n, n + 12);
      Int8Rows y8 = MakeInt8Output(rows, n, (n + 15) / 16 * 16 + 16);
      SiluMulArgs args{.num_rows = rows,
                       .intermediate = n,
                       .gate_up = gate_up.View(),
                       .out = {.values = y.View(), .quantized = y8.View()}};
      ASSERT_TRUE(SiluMul(args, stream_.get()).ok());
      args.out = {.values = alone.View()};  // another kernel
      ASSERT_TRUE(SiluMul(args, stream_.get()).ok());
      Read(&y);
      Read(&alone);
      Read(&y8);
      const std::vector<float> expected = OnCpu(gate_up, n, Isa::kRef);
      // Exp has 1 unit in the last place (2^-23), its sum with 1, the quotient and the product half
      // a unit each.
      EXPECT_TRUE(AllWithin<float>(
          {y.values.data(), rows, n, y.stride}, {expected.data(), rows, n, n},
          [&](int64_t row, int64_t column) {
            return 2.5 * 0x1p-23 * std::abs(expected[static_cast<size_t>(row * n + column)]);
          }))
          << n;
      if (HostCpuFeatures().Best() >= Isa::kAvx512Vnni) {
        EXPECT_TRUE(AllEqual<float>({y.values.data(), rows, n, y.stride},
                                    {OnCpu(gate_up, n, Isa::kAvx512Vnni).data(), rows, n, n}));
      }
      EXPECT_TRUE(AllEqual<float>({alone.values.data(), rows, n, alone.stride},
                                  {y.values.data(), rows, n, y.stride}));
      ExpectQuantized(y8, y.values, y.stride, rows);
    }
  }
}

// Few long rows are cut among blocks that find the scale together: the same bits, and the workspace
// is as it was.
TEST_F(DeviceSiluMul, FewRowsByManyBlocks) {
  Random random(3);
  for (const auto& [n, rows, valid] : {std::tuple<int64_t, int64_t, int32_t>{2056, 3, 3},
                                       {4104, 2, 1},
                                       {16384, 1, 1},
                                       {2056, 9, 9},
                                       {8, 2, 2}}) {
    std::vector<float> values = random.Normals(rows * 2 * n, 4.0F);
    if (n == 4104) values[4000] = kNaN;
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      const Rows gate_up = MakeRows(dtype, rows, 2 * n, 2 * n, values);
      const auto valid_rows = Upload(std::vector<int32_t>{valid});
      Rows whole = MakeOutput(DType::kF32, rows, n, n);
      ASSERT_TRUE(SiluMul({.num_rows = rows,
                           .intermediate = n,
                           .gate_up = gate_up.View(),
                           .out = {.values = whole.View()}},
                          stream_.get())
                      .ok());
      Read(&whole);
      const auto bytes = static_cast<size_t>(SiluMulWorkspaceBytes(rows));
      const auto workspace = Upload(std::vector<uint8_t>(bytes));
      for (const bool with_values : {true, false, true}) {
        Rows y = MakeOutput(DType::kF32, rows, n, n);
        Int8Rows y8 = MakeInt8Output(rows, n, (n + 15) / 16 * 16);
        SiluMulArgs args{.num_rows = rows,
                         .intermediate = n,
                         .gate_up = gate_up.View(),
                         .out = {.quantized = y8.View()},
                         .valid_rows = valid_rows.data(),
                         .workspace = workspace.data()};
        if (with_values) args.out.values = y.View();
        ASSERT_TRUE(SiluMul(args, stream_.get()).ok());
        Read(&y);
        Read(&y8);
        if (with_values) {
          EXPECT_TRUE(
              AllEqual<float>({y.values.data(), valid, n, n}, {whole.values.data(), valid, n, n}));
        }
        ExpectQuantized(y8, whole.values, n, valid);
        EXPECT_EQ(Download(workspace), std::vector<uint8_t>(bytes));
      }
    }
  }
}

TEST_F(DeviceSiluMul, EveryOutputTypeAndTheDevicesRowCount) {
  const int64_t rows = 5;
  const int64_t n = 136;
  const Rows gate_up =
      MakeRows(DType::kBf16, rows, 2 * n, 2 * n, Random(2).Normals(rows * 2 * n, 2.0F));
  Rows reference = MakeOutput(DType::kF32, rows, n, n);
  ASSERT_TRUE(SiluMul({.num_rows = rows,
                       .intermediate = n,
                       .gate_up = gate_up.View(),
                       .out = {.values = reference.View()}},
                      stream_.get())
                  .ok());
  Read(&reference);
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    for (const bool quantize : {false, true}) {
      for (const int32_t valid : {0, 3, 9}) {
        Rows y = MakeOutput(dtype, rows, n, n + 8);
        Int8Rows y8 = MakeInt8Output(rows, n, 144);
        const auto valid_rows = Upload(std::vector<int32_t>{valid});
        SiluMulArgs args{.num_rows = rows,
                         .intermediate = n,
                         .gate_up = gate_up.View(),
                         .out = {.values = y.View()},
                         .valid_rows = valid_rows.data()};
        if (quantize) args.out.quantized = y8.View();
        ASSERT_TRUE(SiluMul(args, stream_.get()).ok());
        Read(&y);
        Read(&y8);
        std::vector<float> expected = reference.values;
        for (size_t i = 0; i < expected.size(); ++i) {
          const bool is_valid = static_cast<int64_t>(i) / n < valid;
          expected[i] = is_valid ? RoundTo(dtype, expected[i]) : kNaN;  // the canary
        }
        EXPECT_TRUE(
            AllEqual<float>({y.values.data(), rows, n, y.stride}, {expected.data(), rows, n, n}));
        ExpectQuantized(y8, reference.values, n, quantize ? valid : 0);
      }
    }
  }
}

TEST_F(DeviceSiluMul, ExtremesAreTheCpus) {
  const std::vector<float> gates = {0.0F,       -0.0F,  88.0F, -88.0F, 89.0F,  -89.0F,
                                    -104.0F,    200.0F, kNaN,  1e38F,  -1e38F, kInfinity,
                                    -kInfinity, 1e-40F, 1.0F,  -1.0F};
  const auto n = static_cast<int64_t>(gates.size());
  std::vector<float> values = gates;
  values.insert(values.end(), gates.size(), 1.5F);
  const Rows gate_up = MakeRows(DType::kF32, 1, 2 * n, 2 * n, values);
  Rows y = MakeOutput(DType::kF32, 1, n, n);
  ASSERT_TRUE(SiluMul({.num_rows = 1,
                       .intermediate = n,
                       .gate_up = gate_up.View(),
                       .out = {.values = y.View()}},
                      stream_.get())
                  .ok());
  Read(&y);
  EXPECT_TRUE(std::isnan(y.values[8]));
  EXPECT_EQ(y.values[7], 300.0F);
  if (HostCpuFeatures().Best() >= Isa::kAvx512Vnni) {
    EXPECT_TRUE(AllEqual<float>({y.values.data(), 1, n, n},
                                {OnCpu(gate_up, n, Isa::kAvx512Vnni).data(), 1, n, n}));
  }
}

TEST_F(DeviceSiluMul, RefusesWhatItHasNot) {
  EXPECT_EQ(SiluMul({.num_rows = 1, .intermediate = 20}, stream_.get()).message(),
            "intermediate is 20, wanted is a multiple of 8, 8388608 at most");
  EXPECT_EQ(SiluMul({.num_rows = 1, .intermediate = 64, .gate_up = {.stride = 120}}, stream_.get())
                .message(),
            "the stride of gate_up is 120 elements, wanted are 128 or more of whole 16 bytes");
}

}  // namespace
}  // namespace nibble::kernels::cuda
