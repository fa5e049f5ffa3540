// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the GEMM tests share: the variants this host can run, activations with poisoned padding,
// outputs with canaries and their comparison.
#pragma once

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "tests/kernels/gemm/amx_emulator.h"
#include "tests/testing/random.h"

namespace nibble::kernels {

inline const Isa kAllIsas[] = {Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx};

// AMX kernels run on every CPU that has AVX-512, where it lacks AMX through the emulator.
inline bool HostRuns(Isa isa) {
  return isa == Isa::kAmx ? amx::InstallAmxEmulator() : isa <= HostCpuFeatures().Best();
}

#define NIBBLE_SKIP_UNLESS_HOST_RUNS(isa)                                                   \
  if (!HostRuns(isa)) {                                                                     \
    GTEST_SKIP() << "this CPU (" << HostCpuFeatures().name << ") has no " << ToString(isa); \
  }

inline std::string IsaName(const ::testing::TestParamInfo<Isa>& info) {
  return std::string(ToString(info.param));
}

// [rows, columns] floats in rows of `stride`, guarded by canaries before, between and after rows.
class Output {
 public:
  Output(int64_t rows, int64_t columns, int64_t stride)
      : rows_(rows),
        columns_(columns),
        stride_(stride),
        data_(static_cast<size_t>(kGuard + rows * stride + kGuard), kCanary) {}
  float* data() { return data_.data() + kGuard; }
  const float* data() const { return data_.data() + kGuard; }
  int64_t stride() const { return stride_; }
  float at(int64_t row, int64_t column) const { return data()[row * stride_ + column]; }

  ::testing::AssertionResult CanariesIntact() const {
    for (int64_t i = -kGuard; i < rows_ * stride_ + kGuard; ++i) {
      const bool inside = i >= 0 && i < rows_ * stride_ && i % stride_ < columns_;
      if (!inside && data()[i] != kCanary) {
        return ::testing::AssertionFailure()
               << "canary at " << i << " of " << rows_ << " x " << columns_ << ", stride "
               << stride_ << " overwritten";
      }
    }
    return ::testing::AssertionSuccess();
  }

 private:
  static constexpr int64_t kGuard = 64;
  static constexpr float kCanary = -12345.5F;
  int64_t rows_;
  int64_t columns_;
  int64_t stride_;
  std::vector<float> data_;
};

// A random matrix [rows, columns] in rows of `stride`; what lies between and after rows is NaN.
inline std::vector<float> PaddedNormals(testing::Random* random, int64_t rows, int64_t columns,
                                        int64_t stride) {
  std::vector<float> data(static_cast<size_t>(rows * stride + 64),
                          std::numeric_limits<float>::quiet_NaN());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      data[static_cast<size_t>(row * stride + column)] = random->Normal();
    }
  }
  return data;
}

// Int8 activations [m, k] as QuantizeRows makes them, and a bias for n output channels.
struct Int8Activations {
  int64_t k = 0;
  int64_t stride = 0;
  std::vector<int8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  std::vector<float> bias;
  int at(int64_t row, int64_t column) const {
    return values[static_cast<size_t>(row * stride + column)];
  }
};

template <typename Value>
Int8Activations MakeActivations(int64_t m, int64_t k, int64_t padding, const Value& value) {
  Int8Activations x;
  x.k = k;
  x.stride = k + padding;
  // Whatever lies between rows must not matter.
  x.values.assign(static_cast<size_t>(m * x.stride), 101);
  for (int64_t row = 0; row < m; ++row) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const auto v = static_cast<int8_t>(value());
      x.values[static_cast<size_t>(row * x.stride + i)] = v;
      sum += v;
    }
    x.sums.push_back(sum);
  }
  return x;
}

inline Int8Activations RandomActivations(testing::Random* random, int64_t m, int64_t n, int64_t k) {
  Int8Activations x = MakeActivations(m, k, 3, [&] { return random->Int(-127, 127); });
  for (int64_t row = 0; row < m; ++row) x.scales.push_back(random->Uniform(0.001F, 0.1F));
  x.bias = random->Normals(n);
  return x;
}

// Every value the same, scales 1, bias 0.
inline Int8Activations ConstantActivations(int64_t m, int64_t n, int64_t k, int value) {
  Int8Activations x = MakeActivations(m, k, 0, [=] { return value; });
  x.scales.assign(static_cast<size_t>(m), 1.0F);
  x.bias.assign(static_cast<size_t>(n), 0.0F);
  return x;
}

// Rows [first, first + m) of the activations times the weight.
inline Output RunInt8(const PackedWeight& weight, Int8Activations* x, int64_t first, int64_t m,
                      ThreadPool* pool) {
  const int64_t n = weight.desc().n;
  Output d(m, n, n + 5);
  kernels::Run(weight,
               {.m = m,
                .a8 = {x->values.data() + first * x->stride, x->scales.data() + first,
                       x->sums.data() + first, x->stride},
                .bias = x->bias.data(),
                .d = d.data(),
                .d_stride = d.stride()},
               pool);
  EXPECT_TRUE(d.CanariesIntact());
  return d;
}

// Rows [0, rows) of `actual` are rows [first, first + rows) of `expected`.
inline ::testing::AssertionResult SameBits(const Output& actual, int64_t rows, int64_t n,
                                           const Output& expected, int64_t first = 0) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t column = 0; column < n; ++column) {
      const float a = actual.at(m, column);
      const float e = expected.at(first + m, column);
      if (std::memcmp(&a, &e, sizeof(float)) != 0) {
        return ::testing::AssertionFailure()
               << "(" << m << ", " << column << "): actual " << a << ", expected " << e;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace nibble::kernels
