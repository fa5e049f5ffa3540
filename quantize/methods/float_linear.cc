// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/methods/float_linear.h"

#include <algorithm>
#include <cmath>

#include "kernels/quant/quantize_rows.h"

namespace nibble::quantize {
namespace {

constexpr int64_t kRowGrain = 8;

// x as a linear layer of the engine reads it: int8 codes times the scale of their row.
std::vector<float> RoundToInt8(const std::vector<float>& x, int64_t num_rows, Isa isa,
                               ThreadPool* pool) {
  const int64_t k = static_cast<int64_t>(x.size()) / std::max<int64_t>(num_rows, 1);
  std::vector<int8_t> codes(x.size());
  std::vector<float> scales(static_cast<size_t>(num_rows));
  std::vector<int32_t> sums(static_cast<size_t>(num_rows));
  kernels::QuantizeRows(
      x.data(), k, num_rows, k,
      {.values = codes.data(), .scales = scales.data(), .sums = sums.data(), .stride = k}, isa,
      pool);
  std::vector<float> rounded(x.size());
  pool->ParallelFor(num_rows, kRowGrain, [&](int64_t b, int64_t e) {
    for (int64_t i = b * k; i < e * k; ++i) {
      rounded[static_cast<size_t>(i)] =
          static_cast<float>(codes[static_cast<size_t>(i)]) * scales[static_cast<size_t>(i / k)];
    }
  });
  return rounded;
}

std::vector<float> Product(const kernels::PackedWeight& weight, const std::vector<float>& x,
                           int64_t num_rows, const float* bias, ThreadPool* pool) {
  std::vector<float> y(static_cast<size_t>(num_rows * weight.desc().n));
  kernels::Run(weight,
               {.m = num_rows,
                .a = x.data(),
                .a_stride = weight.desc().k,
                .bias = bias,
                .d = y.data(),
                .d_stride = weight.desc().n},
               pool);
  return y;
}

std::vector<float> Transposed(const Matrix& matrix) {
  std::vector<float> columns(matrix.weight.size());
  for (int64_t row = 0; row < matrix.n; ++row) {
    for (int64_t j = 0; j < matrix.k; ++j) {
      columns[static_cast<size_t>(j * matrix.n + row)] =
          matrix.weight[static_cast<size_t>(row * matrix.k + j)];
    }
  }
  return columns;
}

}  // namespace

absl::StatusOr<FloatLinear> FloatLinear::Create(const Matrix& matrix,
                                                const LinearSettings& settings, ThreadPool* pool) {
  FloatLinear linear;
  linear.settings_ = settings;
  linear.bias_ = matrix.bias;
  NIBBLE_ASSIGN_OR_RETURN(linear.forward_,
                          kernels::PackDense(matrix.weight.data(), DType::kF32, matrix.n, matrix.k,
                                             DType::kF32, settings.isa, pool));
  if (settings.gradient == Gradient::kNorms) {
    const std::vector<float> columns = Transposed(matrix);
    NIBBLE_ASSIGN_OR_RETURN(linear.backward_,
                            kernels::PackDense(columns.data(), DType::kF32, matrix.k, matrix.n,
                                               DType::kF32, settings.isa, pool));
  }
  return linear;
}

std::vector<float> FloatLinear::Forward(const std::vector<float>& x, int64_t num_rows,
                                        ThreadPool* pool) const {
  const float* bias = bias_.empty() ? nullptr : bias_.data();
  if (settings_.activation_bits != 8) return Product(*forward_, x, num_rows, bias, pool);
  return Product(*forward_, RoundToInt8(x, num_rows, settings_.isa, pool), num_rows, bias, pool);
}

std::vector<float> FloatLinear::Backward(const std::vector<float>& dy, int64_t num_rows,
                                         ThreadPool* pool) const {
  return Product(*backward_, dy, num_rows, nullptr, pool);
}

void AddTo(const std::vector<float>& x, std::vector<float>* sum) {
  for (size_t i = 0; i < x.size(); ++i) (*sum)[i] += x[i];
}

float Sigmoid(float x) { return 1.0F / (1.0F + std::exp(-x)); }

}  // namespace nibble::quantize
