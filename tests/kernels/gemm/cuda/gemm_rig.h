// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of linear layers on a device share: weights of every form beside the CPU's
// reference, activations with poisoned padding, outputs with canaries.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "base/thread_pool.h"
#include "kernels/gemm/cuda/gemm_plan.h"
#include "kernels/gemm/cuda/gemm_run.h"
#include "kernels/gemm/dense_elements.h"
#include "kernels/gemm/grouped_gemm.h"
#include "kernels/gemm/panel_loops.h"
#include "kernels/quant/rtn.h"
#include "tests/testing/compare.h"
#include "tests/testing/random.h"

#define NIBBLE_SKIP_WITHOUT_DEVICE()        \
  if (gpu::ListDevices().value().empty()) { \
    GTEST_SKIP() << "no CUDA device";       \
  }

namespace nibble::kernels::cuda {

// A weight of each form, with group sizes, zero points and signs that kernels tell apart.
enum class WeightKind {
  kFolded128,
  kFolded32,
  kFolded96,
  kFoldedChannel,
  kInteger128,
  kInteger64Zeros,
  kInteger32Mixed,
  kFloat128,
  kFloat64Zeros,
  kFloat32,
  kInt8,
  kBf16,
  kF16,
  kF32,
};
inline constexpr WeightKind kAllKinds[] = {WeightKind::kFolded128,
                                           WeightKind::kFolded32,
                                           WeightKind::kFolded96,
                                           WeightKind::kFoldedChannel,
                                           WeightKind::kInteger128,
                                           WeightKind::kInteger64Zeros,
                                           WeightKind::kInteger32Mixed,
                                           WeightKind::kFloat128,
                                           WeightKind::kFloat64Zeros,
                                           WeightKind::kFloat32,
                                           WeightKind::kInt8,
                                           WeightKind::kBf16,
                                           WeightKind::kF16,
                                           WeightKind::kF32};

inline std::string KindName(const ::testing::TestParamInfo<WeightKind>& info) {
  static const char* const kNames[] = {"Folded128",
                                       "Folded32",
                                       "Folded96",
                                       "FoldedChannel",
                                       "Integer128",
                                       "Integer64Zeros",
                                       "Integer32Mixed",
                                       "Float128",
                                       "Float64Zeros",
                                       "Float32",
                                       "Int8",
                                       "Bf16",
                                       "F16",
                                       "F32"};
  return kNames[static_cast<size_t>(info.param)];
}

inline ThreadPool* Pool() {
  static ThreadPool pool(1);
  return &pool;
}

inline Int4Weight MakeInt4(testing::Random* random, WeightKind kind, int64_t n, int64_t k) {
  switch (kind) {
    case WeightKind::kFolded128:
    case WeightKind::kFolded32:
    case WeightKind::kFolded96:
    case WeightKind::kFoldedChannel: {
      const int64_t group = kind == WeightKind::kFolded128  ? 128
                            : kind == WeightKind::kFolded32 ? 32
                            : kind == WeightKind::kFolded96 ? 96
                                                            : k;
      return QuantizeRtn(random->Normals(n * k).data(), n, k, {.group_size = std::min(group, k)},
                         Pool())
          .value();
    }
    default:
      break;
  }
  const bool mixed = kind == WeightKind::kInteger32Mixed || kind == WeightKind::kFloat64Zeros;
  const bool zeros = kind == WeightKind::kInteger64Zeros || kind == WeightKind::kFloat64Zeros;
  Int4Weight weight;
  weight.n = n;
  weight.k = k;
  weight.group_size = kind == WeightKind::kInteger128 || kind == WeightKind::kFloat128 ? 128
                      : zeros                                                          ? 64
                                                                                       : 32;
  for (int64_t i = 0; i < n * weight.row_bytes(); ++i) {
    weight.codes.push_back(static_cast<uint8_t>(random->Int(0, 255)));
  }
  for (int64_t i = 0; i < n * weight.num_groups(); ++i) {
    const float scale = random->Uniform(0.001F, 0.1F);
    weight.scales.push_back(mixed && random->Int(0, 1) == 0 ? -scale : scale);
    if (zeros) weight.zero_points.push_back(static_cast<uint8_t>(random->Int(0, 15)));
  }
  return weight;
}

// A weight on the device, and what the CPU makes of it.
struct TestWeight {
  WeightKind kind;
  GemmDesc desc;
  std::unique_ptr<DeviceWeight> device;
  std::unique_ptr<PackedWeight> reference;
  std::vector<float> magnitudes;  // [n, k] |w|, for the forms whose sums are rounded
};

inline TestWeight MakeWeight(testing::Random* random, WeightKind kind, int64_t n, int64_t k) {
  TestWeight weight{.kind = kind, .desc = {}, .device = {}, .reference = {}, .magnitudes = {}};
  switch (kind) {
    case WeightKind::kInt8: {
      Int8Weight source{.n = n, .k = k, .codes = {}, .scales = {}};
      for (int64_t i = 0; i < n * k; ++i) {
        source.codes.push_back(static_cast<int8_t>(random->Int(-128, 127)));
      }
      for (int64_t i = 0; i < n; ++i) source.scales.push_back(random->Uniform(-0.1F, 0.1F));
      weight.device = PackInt8(source, Pool()).value();
      weight.reference = kernels::PackInt8(source, Isa::kRef, Pool()).value();
      break;
    }
    case WeightKind::kBf16:
    case WeightKind::kF16:
    case WeightKind::kF32: {
      const DType storage = kind == WeightKind::kBf16  ? DType::kBf16
                            : kind == WeightKind::kF16 ? DType::kF16
                                                       : DType::kF32;
      weight.magnitudes = random->Normals(n * k);
      const float* source = weight.magnitudes.data();
      weight.device = PackDense(source, DType::kF32, n, k, storage, Pool()).value();
      weight.reference =
          kernels::PackDense(source, DType::kF32, n, k, storage, Isa::kRef, Pool()).value();
      break;
    }
    default: {
      const Int4Weight source = MakeInt4(random, kind, n, k);
      const ScaleForm form = kind <= WeightKind::kFoldedChannel    ? ScaleForm::kFolded
                             : kind <= WeightKind::kInteger32Mixed ? ScaleForm::kInteger
                                                                   : ScaleForm::kFloat;
      weight.device = PackInt4(source, form, Pool()).value();
      weight.reference = kernels::PackInt4(source, form, Isa::kRef, Pool()).value();
      if (form == ScaleForm::kFloat) {
        for (int64_t i = 0; i < n * k; ++i) {
          weight.magnitudes.push_back(source.Dequantize(i / k, i % k));
        }
      }
    }
  }
  for (float& value : weight.magnitudes) value = std::abs(value);
  weight.desc = weight.device->desc();
  return weight;
}

// The device, a stream and a workspace that no kernel may leave.
class Rig {
 public:
  Rig() : stream_(gpu::Stream::Create().value()), caps_(gpu::GetDeviceCaps(0).value()) {}
  cudaStream_t stream() const { return stream_.get(); }
  const gpu::DeviceCaps& caps() const { return caps_; }
  GemmContext Context(int64_t workspace_bytes) {
    if (static_cast<int64_t>(workspace_.size()) < workspace_bytes) {
      workspace_ = gpu::DeviceBuffer<uint8_t>::Create(static_cast<size_t>(workspace_bytes)).value();
    }
    return {.caps = caps_, .workspace = workspace_.data(), .workspace_bytes = workspace_bytes};
  }
  template <typename T>
  gpu::DeviceBuffer<T> Upload(const std::vector<T>& host) {
    auto device = gpu::DeviceBuffer<T>::Create(host.size()).value();
    Check(gpu::CopyToDevice(device.data(), host.data(), device.size_bytes(), stream()));
    Check(stream_.Synchronize());
    return device;
  }
  template <typename T>
  std::vector<T> Download(const gpu::DeviceBuffer<T>& device) {
    std::vector<T> host(device.size());
    Check(gpu::CopyToHost(host.data(), device.data(), device.size_bytes(), stream()));
    Check(stream_.Synchronize());
    return host;
  }

 private:
  static void Check(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }
  gpu::Stream stream_;
  gpu::DeviceCaps caps_;
  gpu::DeviceBuffer<uint8_t> workspace_;
};

// Rows of activations for one description, on both sides; the padding of rows is poison.
struct Activations {
  int64_t rows = 0;
  int64_t k = 0;
  int64_t stride = 0;
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<float> values;  // dense, of the weight's type
  gpu::DeviceBuffer<int8_t> device_codes;
  gpu::DeviceBuffer<float> device_scales;
  gpu::DeviceBuffer<uint8_t> device_values;
  DType dtype = DType::kF32;

  QuantizedRows Quantized(bool device) {
    return device ? QuantizedRows{device_codes.data(), device_scales.data(), nullptr, stride}
                  : QuantizedRows{codes.data(), scales.data(), nullptr, stride};
  }
  DeviceMatrix Dense() const { return {device_values.data(), dtype, stride}; }
  float At(int64_t row, int64_t column) const {
    const auto i = static_cast<size_t>(row * stride + column);
    return values.empty() ? static_cast<float>(codes[i]) * scales[static_cast<size_t>(row)]
                          : values[i];
  }
};

inline Activations MakeActivations(Rig* rig, testing::Random* random, const GemmDesc& desc,
                                   int64_t rows) {
  Activations x;
  x.rows = rows;
  x.k = desc.k;
  x.stride = RoundUp(desc.k, 16) + 16;
  const auto count = static_cast<size_t>(rows * x.stride);
  if (TakesInt8(desc.format)) {
    x.codes.assign(count, 101);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < x.k; ++i) {
        x.codes[static_cast<size_t>(row * x.stride + i)] =
            static_cast<int8_t>(random->Int(-127, 127));
      }
      x.scales.push_back(random->Uniform(0.001F, 0.1F));
    }
    x.device_codes = rig->Upload(x.codes);
    x.device_scales = rig->Upload(x.scales);
    return x;
  }
  x.dtype = desc.storage;
  x.values.assign(count, std::numeric_limits<float>::quiet_NaN());
  std::vector<uint8_t> bytes(count * SizeOf(x.dtype));
  for (size_t i = 0; i < count; ++i) {
    if (static_cast<int64_t>(i) % x.stride < x.k) x.values[i] = random->Normal();
    StoreElement(x.values[i], x.dtype, static_cast<int64_t>(i), bytes.data());
    x.values[i] = LoadElement(bytes.data(), x.dtype, static_cast<int64_t>(i));
  }
  x.device_values = rig->Upload(bytes);
  return x;
}

// [rows, columns] of a type on the device, in longer rows; whatever is not written stays.
class DeviceOutput {
 public:
  DeviceOutput(Rig* rig, int64_t rows, int64_t columns, DType dtype)
      : rows_(rows), columns_(columns), dtype_(dtype), stride_(RoundUp(columns, 8) + 8) {
    const std::vector<uint8_t> canaries(static_cast<size_t>((rows + 2) * stride_) * SizeOf(dtype),
                                        kCanary);
    data_ = rig->Upload(canaries);
  }
  // Row 0 of the matrix is row 1 of the buffer.
  DeviceMatrix Matrix() const {
    return {data_.data() + stride_ * static_cast<int64_t>(SizeOf(dtype_)), dtype_, stride_};
  }
  // [rows, columns]
  std::vector<float> Read(Rig* rig) {
    const std::vector<uint8_t> bytes = rig->Download(data_);
    std::vector<float> values;
    for (int64_t i = 0; i < (rows_ + 2) * stride_; ++i) {
      const int64_t row = i / stride_ - 1;
      const auto element = static_cast<int64_t>(SizeOf(dtype_));
      if (row >= 0 && row < rows_ && i % stride_ < columns_) {
        values.push_back(LoadElement(bytes.data(), dtype_, i));
        continue;
      }
      for (int64_t b = i * element; b < (i + 1) * element; ++b) {
        if (bytes[static_cast<size_t>(b)] != kCanary) {
          ADD_FAILURE() << "canary overwritten at row " << row << ", column " << i % stride_;
          return values;
        }
      }
    }
    return values;
  }

 private:
  static constexpr uint8_t kCanary = 0x5A;
  int64_t rows_;
  int64_t columns_;
  DType dtype_;
  int64_t stride_;
  gpu::DeviceBuffer<uint8_t> data_;
};

inline float RoundTo(float value, DType dtype) {
  uint32_t bits = 0;
  StoreElement(value, dtype, 0, &bits);
  return LoadElement(&bits, dtype, 0);
}

// Whether `actual` [rows, n] is `expected` [rows, n] (in float32, rounded here to the output's
// type): the same bits where sums are exact. Row i reads row a_rows[i] of x.
inline ::testing::AssertionResult Matches(const TestWeight& weight, const Activations& x,
                                          const std::vector<int32_t>& a_rows,
                                          const std::vector<float>& actual,
                                          std::vector<float> expected, DType dtype) {
  const int64_t n = weight.desc.n;
  const int64_t k = weight.desc.k;
  const auto rows = static_cast<int64_t>(a_rows.size());
  for (float& value : expected) value = RoundTo(value, dtype);
  const testing::Matrix<float> a{actual.data(), rows, n, n};
  const testing::Matrix<float> e{expected.data(), rows, n, n};
  if (weight.magnitudes.empty()) return testing::AllEqual(a, e);
  // At most k additions, each of relative error 2^-23 (matrix units truncate) of a sum that is at
  // most the sum of magnitudes, and the rounding of the output, twice.
  const double output = dtype == DType::kF32 ? 0x1p-23 : dtype == DType::kF16 ? 0x1p-10 : 0x1p-7;
  return testing::AllWithin(a, e, [&](int64_t row, int64_t column) {
    double sum = 0.0;
    for (int64_t i = 0; i < k; ++i) {
      sum += std::abs(static_cast<double>(x.At(a_rows[static_cast<size_t>(row)], i))) *
             static_cast<double>(weight.magnitudes[static_cast<size_t>(column * k + i)]);
    }
    return static_cast<double>(k) * 0x1p-23 * sum +
           output * std::abs(static_cast<double>(expected[static_cast<size_t>(row * n + column)]));
  });
}

}  // namespace nibble::kernels::cuda
