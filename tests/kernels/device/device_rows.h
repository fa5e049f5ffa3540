// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Tests of row ops on a device: matrices that are there and here, with something between their rows
// that must be neither read nor written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/float16.h"
#include "kernels/device/device_matrix.h"
#include "kernels/quant/quantize_rows.h"
#include "tests/base/cuda/device_test.h"

namespace nibble::testing {

inline float RoundTo(DType dtype, float value) {
  if (dtype == DType::kBf16) return ToFloat(ToBFloat16(value));
  if (dtype == DType::kF16) return ToFloat(ToFloat16(value));
  return value;
}

// Values of a type as bytes, and back.
inline std::vector<uint8_t> Encode(DType dtype, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * SizeOf(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half =
        dtype == DType::kBf16 ? ToBFloat16(values[i]).bits : ToFloat16(values[i]).bits;
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[i * 4], &values[i], 4);
    } else {
      std::memcpy(&bytes[i * 2], &half, 2);
    }
  }
  return bytes;
}
inline std::vector<float> Decode(DType dtype, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / SizeOf(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half = 0;
    if (dtype == DType::kF32) {
      std::memcpy(&values[i], &bytes[i * 4], 4);
      continue;
    }
    std::memcpy(&half, &bytes[i * 2], 2);
    values[i] = dtype == DType::kBf16 ? ToFloat(BFloat16{half}) : ToFloat(Float16{half});
  }
  return values;
}

// NaN in the types of activations, and no value that an op would write.
inline constexpr uint8_t kCanary = 0xFF;

// [rows, columns] with `stride`; canaries between the rows.
struct Rows {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;
  std::vector<float> values;  // [rows, stride], rounded to the type
  gpu::DeviceBuffer<uint8_t> bytes;

  kernels::cuda::DeviceMatrix From(int64_t row) const {
    return {.data = bytes.data() + row * stride * static_cast<int64_t>(SizeOf(dtype)),
            .dtype = dtype,
            .stride = stride};
  }
  kernels::cuda::DeviceMatrix View() const { return From(0); }
  const float* Row(int64_t row) const { return values.data() + row * stride; }
};

struct Int8Rows {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;
  std::vector<int8_t> values;  // [rows, stride], as Read() found them
  std::vector<float> scales;
  std::vector<int32_t> sums;
  gpu::DeviceBuffer<int8_t> device_values;
  gpu::DeviceBuffer<float> device_scales;
  gpu::DeviceBuffer<int32_t> device_sums;

  kernels::QuantizedRows View() const {
    return {.values = device_values.data(),
            .scales = device_scales.data(),
            .sums = device_sums.data(),
            .stride = stride};
  }
};

class RowsTest : public DeviceTest {
 protected:
  // `values` is [rows, columns].
  Rows MakeRows(DType dtype, int64_t rows, int64_t columns, int64_t stride,
                const std::vector<float>& values) {
    Rows result{.dtype = dtype, .rows = rows, .columns = columns, .stride = stride};
    result.values.assign(static_cast<size_t>(rows * stride),
                         std::numeric_limits<float>::quiet_NaN());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < columns; ++i) {
        result.values[static_cast<size_t>(row * stride + i)] =
            RoundTo(dtype, values[static_cast<size_t>(row * columns + i)]);
      }
    }
    std::vector<uint8_t> bytes = Encode(dtype, result.values);
    const size_t element = SizeOf(dtype);
    for (int64_t row = 0; row < rows; ++row) {
      const auto begin = static_cast<size_t>(row * stride + columns) * element;
      std::fill_n(bytes.begin() + static_cast<int64_t>(begin),
                  static_cast<size_t>(stride - columns) * element, kCanary);
    }
    result.bytes = Upload(bytes);
    return result;
  }
  // For an op to write.
  Rows MakeOutput(DType dtype, int64_t rows, int64_t columns, int64_t stride) {
    Rows result{.dtype = dtype, .rows = rows, .columns = columns, .stride = stride};
    result.bytes =
        Upload(std::vector<uint8_t>(static_cast<size_t>(rows * stride) * SizeOf(dtype), kCanary));
    return result;
  }
  Int8Rows MakeInt8Output(int64_t rows, int64_t columns, int64_t stride) {
    Int8Rows result{.rows = rows, .columns = columns, .stride = stride};
    const auto n = static_cast<size_t>(rows);
    result.device_values =
        Upload(std::vector<int8_t>(n * static_cast<size_t>(stride), kInt8Canary));
    result.device_scales = Upload(std::vector<float>(n, kScaleCanary));
    result.device_sums = Upload(std::vector<int32_t>(n, kSumCanary));
    return result;
  }

  // What the device has now; canaries must be as they were.
  void Read(Rows* rows) {
    const std::vector<uint8_t> bytes = Download(rows->bytes);
    rows->values = Decode(rows->dtype, bytes);
    const auto element = static_cast<int64_t>(SizeOf(rows->dtype));
    for (int64_t row = 0; row < rows->rows; ++row) {
      const auto begin = bytes.begin() + (row * rows->stride + rows->columns) * element;
      const auto end = bytes.begin() + (row + 1) * rows->stride * element;
      EXPECT_EQ(std::count(begin, end, kCanary), end - begin) << "written behind row " << row;
    }
  }
  void Read(Int8Rows* rows) {
    rows->values = Download(rows->device_values);
    rows->scales = Download(rows->device_scales);
    rows->sums = Download(rows->device_sums);
    for (int64_t row = 0; row < rows->rows; ++row) {
      const auto begin = rows->values.begin() + row * rows->stride + rows->columns;
      const auto end = rows->values.begin() + (row + 1) * rows->stride;
      EXPECT_EQ(std::count(begin, end, kInt8Canary), end - begin) << "written behind row " << row;
    }
  }

  // That `actual` is what the CPU's QuantizeRows makes of `values`, to the bit; rows from
  // `valid_rows` on are as they were.
  void ExpectQuantized(const Int8Rows& actual, const std::vector<float>& values, int64_t stride,
                       int64_t valid_rows) {
    for (int64_t row = 0; row < actual.rows; ++row) {
      const auto r = static_cast<size_t>(row);
      std::vector<int8_t> codes(static_cast<size_t>(actual.columns), kInt8Canary);
      float scale = kScaleCanary;
      int32_t sum = kSumCanary;
      if (row < valid_rows) {
        kernels::QuantizeRowRange(
            values.data() + row * stride, stride, 1, actual.columns,
            {.values = codes.data(), .scales = &scale, .sums = &sum, .stride = actual.columns},
            Isa::kRef);
      }
      const auto begin = actual.values.begin() + row * actual.stride;
      const auto differs = std::mismatch(codes.begin(), codes.end(), begin);
      EXPECT_EQ(differs.first, codes.end())
          << "row " << row << " of " << actual.rows << ", column " << differs.first - codes.begin()
          << " of " << actual.columns << ": code " << int{*differs.second} << ", wanted "
          << int{*differs.first};
      EXPECT_EQ(std::memcmp(&actual.scales[r], &scale, sizeof(float)), 0)
          << "row " << row << ": scale " << actual.scales[r] << ", wanted " << scale;
      EXPECT_EQ(actual.sums[r], sum) << "row " << row;
    }
  }

 private:
  static constexpr int8_t kInt8Canary = -128;  // no code
  static constexpr float kScaleCanary = -7.0F;
  static constexpr int32_t kSumCanary = INT32_MIN;
};

}  // namespace nibble::testing
