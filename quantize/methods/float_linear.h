// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A linear layer in float, forward and backward to its input: what FloatBlock is made of.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/cpu_features.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/gemm/gemm.h"
#include "quantize/methods/calibration_data.h"

namespace nibble::quantize {

enum class Gradient { kNone, kNorms };  // kNorms: keep transposed weights too, for Backward

struct LinearSettings {
  // 8: inputs are rounded to int8 per token; the gradient passes as if they were not.
  int activation_bits = 16;
  Gradient gradient = Gradient::kNone;
  Isa isa = Isa::kRef;
};

// Rows are values of their own: no result depends on the number of threads.
class FloatLinear {
 public:
  FloatLinear() = default;
  static absl::StatusOr<FloatLinear> Create(const Matrix& matrix, const LinearSettings& settings,
                                            ThreadPool* pool);

  bool has_gradient() const { return backward_ != nullptr; }
  // [num_rows, n] = x W^T + bias.
  std::vector<float> Forward(const std::vector<float>& x, int64_t num_rows, ThreadPool* pool) const;
  // [num_rows, k] = dy W: the gradient of x. REQUIRES has_gradient().
  std::vector<float> Backward(const std::vector<float>& dy, int64_t num_rows,
                              ThreadPool* pool) const;

 private:
  LinearSettings settings_;
  std::unique_ptr<kernels::PackedWeight> forward_;   // [n, k]
  std::unique_ptr<kernels::PackedWeight> backward_;  // [k, n]; null without gradient
  std::vector<float> bias_;
};

// sum += x
void AddTo(const std::vector<float>& x, std::vector<float>* sum);
float Sigmoid(float x);

}  // namespace nibble::quantize
