// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the GEMM tests share: the variants this host can run, activations with poisoned padding and
// outputs with canaries.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "tests/testing/random.h"

namespace nibble::kernels {

inline const Isa kAllIsas[] = {Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmx};

inline bool HostRuns(Isa isa) { return isa <= HostCpuFeatures().Best(); }

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

}  // namespace nibble::kernels
